// Eight cells at a time. Compiled with -mavx2 -mfma (setup.py); run only where the processor has both.
#include "rollout_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace nca {
namespace avx2 {

#define NCA_LANE static inline __attribute__((always_inline))

struct Row {
  static constexpr int CELLS = 2;
  __m256 value;

  NCA_LANE Row broadcast(const Features& features) {
    return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(features.value))};
  }
  NCA_LANE Row load(const Features* pair) { return {_mm256_loadu_ps(pair->value)}; }
  NCA_LANE Row load(const Features* table, const uint16_t* const (&cells)[CELLS], int offset) {
    const double* halves = reinterpret_cast<const double*>(table);  // only to address in steps of 8 bytes
    const float* first = reinterpret_cast<const float*>(halves + cells[0][offset]);
    const float* second = reinterpret_cast<const float*>(halves + cells[1][offset]);
    return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(first)), _mm_load_ps(second), 1)};
  }
  __attribute__((always_inline)) void store(Features* pair) const { _mm256_storeu_ps(pair->value, value); }
};

NCA_LANE Row add(Row a, Row b) { return {_mm256_add_ps(a.value, b.value)}; }

struct Lanes {
  static constexpr int WIDTH = 8;
  static constexpr int PACK = 2, BLOCK = 5;  // 10 sums, 2 hidden values and a weight in 16 registers
  __m256 value;
  struct Rivals {
    __m256i value;
    __attribute__((always_inline)) void store(int32_t* to) const {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), value);
    }
  };

  NCA_LANE Lanes broadcast(float value) { return {_mm256_set1_ps(value)}; }
  NCA_LANE Lanes load(const float* from) { return {_mm256_load_ps(from)}; }
  NCA_LANE void transpose(const Row (&rows)[4], Lanes (&out)[NUM_FEATURES]) {
    const __m256 pair[4] = {rows[0].value, rows[1].value, rows[2].value, rows[3].value};  // cells i and i + 4
    const __m256 low01 = _mm256_unpacklo_ps(pair[0], pair[1]), high01 = _mm256_unpackhi_ps(pair[0], pair[1]);
    const __m256 low23 = _mm256_unpacklo_ps(pair[2], pair[3]), high23 = _mm256_unpackhi_ps(pair[2], pair[3]);
    out[0].value = _mm256_shuffle_ps(low01, low23, 0x44);
    out[1].value = _mm256_shuffle_ps(low01, low23, 0xEE);
    out[2].value = _mm256_shuffle_ps(high01, high23, 0x44);
    out[3].value = _mm256_shuffle_ps(high01, high23, 0xEE);
  }
  // The place of the highest bit, which is the exponent of the number as a float.
  NCA_LANE __m256i highest_bit(__m256i bits) {
    return _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(bits)), 23),
                            _mm256_set1_epi32(127));
  }
  NCA_LANE __m256i pack(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8); }
  // New states for old, of cells with one rival; bit i of the masks tells of cell i.
  NCA_LANE void store_states(const Rivals (&rivals)[PACK], uint8_t* states, CellMask& changed, CellMask& doubtful) {
    const __m256i bits[PACK] = {rivals[0].value, rivals[1].value};
    const __m256i state = pack(highest_bit(bits[0]), highest_bit(bits[1])), ones = _mm256_set1_epi32(-1);
    const __m256i single = pack(_mm256_cmpeq_epi32(_mm256_and_si256(bits[0], _mm256_add_epi32(bits[0], ones)),
                                                   _mm256_setzero_si256()),
                                _mm256_cmpeq_epi32(_mm256_and_si256(bits[1], _mm256_add_epi32(bits[1], ones)),
                                                   _mm256_setzero_si256()));
    const __m128i now = _mm_packus_epi16(_mm256_castsi256_si128(state), _mm256_extracti128_si256(state, 1));
    const __m128i sure = _mm_packs_epi16(_mm256_castsi256_si128(single), _mm256_extracti128_si256(single, 1));
    __m128i* place = reinterpret_cast<__m128i*>(states);
    changed = 0xFFFF ^ static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(now, _mm_loadu_si128(place))));
    doubtful = 0xFFFF ^ static_cast<unsigned>(_mm_movemask_epi8(sure));
    _mm_storeu_si128(place, now);
  }
  __attribute__((always_inline)) void store(float* to) const { _mm256_store_ps(to, value); }
};

NCA_LANE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
NCA_LANE Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.value, b.value)}; }
NCA_LANE Lanes positive_part(Lanes a) { return {_mm256_max_ps(a.value, _mm256_setzero_ps())}; }
NCA_LANE Lanes operator-(Lanes a, float b) { return {_mm256_sub_ps(a.value, _mm256_set1_ps(b))}; }
NCA_LANE Lanes::Rivals add_where_at_least(Lanes::Rivals rivals, Lanes logit, Lanes least, int what) {
  const __m256i mask = _mm256_castps_si256(_mm256_cmp_ps(logit.value, least.value, _CMP_GE_OQ));
  return {_mm256_add_epi32(rivals.value, _mm256_and_si256(mask, _mm256_set1_epi32(what)))};
}

struct Slots {
  static constexpr int COUNT = 4;
  __m256i value;

  NCA_LANE Slots broadcast(uint32_t word) { return {_mm256_set1_epi64x(static_cast<int64_t>(word))}; }
  NCA_LANE Slots ascending(uint32_t first) {
    return {_mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(first)), _mm256_setr_epi64x(0, 1, 2, 3))};
  }
  NCA_LANE void store(Slots a, Slots b, Slots c, Slots d, uint32_t* to) {
    const __m256i ab = _mm256_blend_epi32(a.value, _mm256_slli_epi64(b.value, 32), 0xAA);
    const __m256i cd = _mm256_blend_epi32(c.value, _mm256_slli_epi64(d.value, 32), 0xAA);
    const __m256i even = _mm256_unpacklo_epi64(ab, cd), odd = _mm256_unpackhi_epi64(ab, cd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), _mm256_permute2x128_si256(even, odd, 0x31));
  }
};

NCA_LANE Slots multiply(Slots a, uint32_t b) { return {_mm256_mul_epu32(a.value, _mm256_set1_epi64x(b))}; }
NCA_LANE Slots high_half(Slots a) { return {_mm256_srli_epi64(a.value, 32)}; }
NCA_LANE Slots exclusive_or(Slots a, Slots b) { return {_mm256_xor_si256(a.value, b.value)}; }

#include "rollout_row_tables.h"

#include "rollout_kernel_body.h"  // after what it uses

}  // namespace avx2

const Kernel avx2_kernel = NCA_KERNEL(avx2);

}  // namespace nca
#endif
