// Sixteen cells at a time. Compiled with the flags of setup.py; run only where the processor has all of these sets.
#include "rollout_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace nca {
namespace avx512 {

#define NCA_LANE static inline __attribute__((always_inline))

struct Lanes {
  static constexpr int WIDTH = 16;
  static constexpr int PACK = 1, BLOCK = 16;  // 32 registers hold all sums; 12x12 cells are nine vectors
  __m512 value;
  struct Tally {
    __m512i value;
  };

  NCA_LANE Lanes broadcast(float value) { return {_mm512_set1_ps(value)}; }
  NCA_LANE Lanes load(const float* from) { return {_mm512_load_ps(from)}; }
  // New states for old; bit i of the masks tells of cell i.
  NCA_LANE void store_states(const Tally (&tally)[PACK], uint8_t* states, unsigned& changed, unsigned& doubtful) {
    const __m128i now = _mm512_cvtepi32_epi8(tally[0].value);
    __m128i* place = reinterpret_cast<__m128i*>(states);
    changed = ~static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(now, _mm_loadu_si128(place))));
    doubtful = _mm512_cmpgt_epi32_mask(tally[0].value, _mm512_set1_epi32(2 * TALLY_ONE - 1));
    _mm_storeu_si128(place, now);
  }
  __attribute__((always_inline)) void store(float* to) const { _mm512_store_ps(to, value); }
};

NCA_LANE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
NCA_LANE Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.value, b.value)}; }
NCA_LANE Lanes positive_part(Lanes a) { return {_mm512_max_ps(a.value, _mm512_setzero_ps())}; }
NCA_LANE Lanes operator-(Lanes a, float b) { return {_mm512_sub_ps(a.value, _mm512_set1_ps(b))}; }
NCA_LANE Lanes::Tally add_where_at_least(Lanes::Tally tally, Lanes logit, Lanes least, int what) {
  const __mmask16 mask = _mm512_cmp_ps_mask(logit.value, least.value, _CMP_GE_OQ);
  return {_mm512_mask_add_epi32(tally.value, mask, tally.value, _mm512_set1_epi32(what))};
}

// A row of three states as three nibbles: a lookup of sixteen cells in a register reads the low four bits of each lane.
template <int S>
static inline uint16_t row_code(uint8_t left, uint8_t centre, uint8_t right) {
  return static_cast<uint16_t>(left | centre << 4 | right << 8);
}

template <int S>
static void fill_tables(RuleTables& rule) {
  for (int neighbour = 0; neighbour < NUM_NEIGHBOURS; ++neighbour) {
    for (int s = 0; s < S; ++s) {
      for (int k = 0; k < NUM_FEATURES; ++k) rule.plane[neighbour][k][s] = rule.table[neighbour][s].value[k];
    }
  }
}

// Rows are summed (left + centre) + right, then top to bottom onto the bias.
NCA_LANE void gather_features(const Grid& grid, const RuleTables& rule, int first,
                              Lanes (&by_feature)[NUM_FEATURES][Lanes::PACK]) {
  __m512 sum[NUM_FEATURES];
  for (int k = 0; k < NUM_FEATURES; ++k) sum[k] = _mm512_set1_ps(rule.feature_bias.value[k]);
  for (int row = 0; row < NUM_ROWS; ++row) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(grid.rows + first + row * grid.width));
    const __m512i left = _mm512_cvtepu16_epi32(codes);
    const __m512i centre = _mm512_srli_epi32(left, 4), right = _mm512_srli_epi32(left, 8);
    for (int k = 0; k < NUM_FEATURES; ++k) {
      const auto look_up = [&](__m512i states, int neighbour) __attribute__((always_inline)) {
        return _mm512_permutexvar_ps(states, _mm512_load_ps(rule.plane[3 * row + neighbour][k]));
      };
      const __m512 pair = _mm512_add_ps(look_up(left, 0), look_up(centre, 1));
      sum[k] = _mm512_add_ps(sum[k], _mm512_add_ps(pair, look_up(right, 2)));
    }
  }
  for (int k = 0; k < NUM_FEATURES; ++k) by_feature[k][0].value = sum[k];
}

struct Slots {
  static constexpr int COUNT = 8;
  __m512i value;

  NCA_LANE Slots broadcast(uint32_t word) { return {_mm512_set1_epi64(static_cast<int64_t>(word))}; }
  NCA_LANE Slots ascending(uint32_t first) {
    return {_mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first)), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))};
  }
  NCA_LANE void store(Slots a, Slots b, Slots c, Slots d, uint32_t* to) {
    const __m512i ab = _mm512_mask_blend_epi32(0xAAAA, a.value, _mm512_slli_epi64(b.value, 32));
    const __m512i cd = _mm512_mask_blend_epi32(0xAAAA, c.value, _mm512_slli_epi64(d.value, 32));
    const __m512i even = _mm512_unpacklo_epi64(ab, cd), odd = _mm512_unpackhi_epi64(ab, cd);
    const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i last = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(even, first, odd));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(even, last, odd));
  }
};

NCA_LANE Slots multiply(Slots a, uint32_t b) { return {_mm512_mul_epu32(a.value, _mm512_set1_epi64(b))}; }
NCA_LANE Slots high_half(Slots a) { return {_mm512_srli_epi64(a.value, 32)}; }
NCA_LANE Slots exclusive_or(Slots a, Slots b) { return {_mm512_xor_si512(a.value, b.value)}; }

#include "rollout_kernel_body.h"

}  // namespace avx512

const Kernel avx512_kernel = NCA_KERNEL(avx512);

}  // namespace nca
#endif
