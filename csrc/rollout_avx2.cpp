// Eight cells at a time. Compiled with -mavx2 -mfma (setup.py); run only where the processor has both.
#include "rollout_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace nca {
namespace avx2 {

#define NCA_LANE static inline __attribute__((always_inline))

struct Lanes {
  static constexpr int WIDTH = 8;
  __m256 value;

  NCA_LANE Lanes broadcast(float value) { return {_mm256_set1_ps(value)}; }
  NCA_LANE Lanes load(const float* from) { return {_mm256_load_ps(from)}; }
  NCA_LANE void transpose(const Features* features, Lanes (&out)[NUM_FEATURES]) {
    __m256 pair[4];  // cells i and i + 4
    for (int i = 0; i < 4; ++i) {
      pair[i] = _mm256_set_m128(_mm_load_ps(features[i + 4].value), _mm_load_ps(features[i].value));
    }
    const __m256 low01 = _mm256_unpacklo_ps(pair[0], pair[1]), high01 = _mm256_unpackhi_ps(pair[0], pair[1]);
    const __m256 low23 = _mm256_unpacklo_ps(pair[2], pair[3]), high23 = _mm256_unpackhi_ps(pair[2], pair[3]);
    out[0].value = _mm256_shuffle_ps(low01, low23, 0x44);
    out[1].value = _mm256_shuffle_ps(low01, low23, 0xEE);
    out[2].value = _mm256_shuffle_ps(high01, high23, 0x44);
    out[3].value = _mm256_shuffle_ps(high01, high23, 0xEE);
  }
  __attribute__((always_inline)) void store(float* to) const { _mm256_store_ps(to, value); }
};

NCA_LANE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
NCA_LANE Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.value, b.value)}; }
NCA_LANE Lanes smaller(Lanes a, Lanes b) { return {_mm256_min_ps(a.value, b.value)}; }
NCA_LANE Lanes positive_part(Lanes a) { return {_mm256_max_ps(a.value, _mm256_setzero_ps())}; }
NCA_LANE Lanes select_greater(Lanes a, Lanes b, Lanes yes, Lanes no) {
  return {_mm256_blendv_ps(no.value, yes.value, _mm256_cmp_ps(a.value, b.value, _CMP_GT_OQ))};
}
NCA_LANE unsigned at_least(Lanes second, Lanes best, float window) {
  const __m256 least = _mm256_sub_ps(best.value, _mm256_set1_ps(window));
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(second.value, least, _CMP_GE_OQ)));
}

#include "rollout_kernel_body.h"

}  // namespace avx2

const Kernel avx2_kernel = {"avx2", avx2::truncated_normals_kernel, avx2::step_kernel};

}  // namespace nca
#endif
