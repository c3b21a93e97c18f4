// Sixteen cells at a time, first in integers of 16 bits. Compiled with the flags of setup.py; run only where the
// processor has all of these sets.
//
// Most cells have one logit far above the others, and integers are enough to see which. A bound on what they are wrong
// by, proven for each rule, tells the other cells apart (one in eighteen under the released law), and these are done in
// float32 as ever. So the states are those of the other kernels, to the bit.
#include <float.h>
#include <math.h>

#include "rollout_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace nca {
namespace avx512_vnni {

#include "rollout_lanes_avx512.h"

#include "rollout_kernel_body.h"

#include "rollout_coarse_avx512.h"

using One = LanesOf<1>;

// Cells that wait for float32, by their place in the grid.
struct Waiting {
  int count = 0;
  int32_t cell[One::WIDTH + TILE];

  // Fewer than One::WIDTH may wait before.
  void add(int first, CellMask cells) {
    const __m512i ascending = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int p = 0; p < Lanes::PACK; ++p, cells >>= Lanes::WIDTH) {
      const __mmask16 mask = static_cast<__mmask16>(cells);
      const __m512i place = _mm512_add_epi32(ascending, _mm512_set1_epi32(first + p * Lanes::WIDTH));
      _mm512_storeu_si512(cell + count, _mm512_maskz_compress_epi32(mask, place));
      count += __builtin_popcount(mask);
    }
  }
};

// exp32 of each lane.
NCA_LANE __m512 exp32_of(__m512 x) {
  const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269502162933349609375f));
  const __mmask16 negative = _mm512_cmp_ps_mask(scaled, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 half = _mm512_mask_blend_ps(negative, _mm512_set1_ps(0.5f), _mm512_set1_ps(-0.5f));
  const __m512i k = _mm512_cvttps_epi32(_mm512_add_ps(scaled, half));
  const __m512 r = _mm512_fmadd_ps(_mm512_cvtepi32_ps(k), _mm512_set1_ps(-0.693147182464599609375f), x);
  __m512 series = _mm512_fmadd_ps(_mm512_set1_ps(1.0f / 5040.0f), r, _mm512_set1_ps(1.0f / 720.0f));
  constexpr float REST[] = {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
  for (float next : REST) series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(next));
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(k, _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(series, _mm512_castsi512_ps(power));
}

// unit_uniform of the draws of eight cells.
NCA_LANE __m256 uniforms(const Stream& noise, uint32_t step, __m256i cell) {
  Slots word[4][1];
  const __m256i index = _mm256_or_si256(cell, _mm256_set1_epi32(static_cast<int>(noise.purpose << 24)));
  word[0][0].value = _mm512_cvtepu32_epi64(index);
  word[1][0] = Slots::broadcast(step);
  word[2][0] = Slots::broadcast(noise.candidate);
  word[3][0] = Slots::broadcast(noise.repeat);
  philox_rounds(noise, word);
  const __m256i bits = _mm512_cvtepi64_epi32(word[0][0].value);
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(bits, 8)), _mm256_set1_ps(0x1p-24f));
}

// The same of the cells in `lanes`, which are mostly few.
NCA_LANE __m512 uniforms_of(const Stream& noise, uint32_t step, __m512i cell, __mmask16 lanes) {
  const __m512i few = _mm512_maskz_compress_epi32(lanes, cell);
  __m512 uniform = _mm512_castps256_ps512(uniforms(noise, step, _mm512_castsi512_si256(few)));
  if (__builtin_expect(__builtin_popcount(lanes) > 8, 0)) {
    const __m256 others = uniforms(noise, step, _mm512_extracti64x4_epi64(few, 1));
    uniform = _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(uniform), _mm256_castps_pd(others), 1));
  }
  return _mm512_maskz_expand_ps(lanes, uniform);
}

// sample_two in each lane, of the lowest and the highest of its rivals; where there is one, that one.
template <int S>
NCA_LANE __m512i sample_pairs(const float (&logits)[S][One::WIDTH], __m512i rivals, __m512 uniform,
                              const Sampling& sampling) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i lowest = _mm512_and_si512(rivals, _mm512_sub_epi32(_mm512_setzero_si512(), rivals));
  const __m512i first = place_of_highest(lowest), second = place_of_highest(rivals);
  const __m512 a = _mm512_i32gather_ps(_mm512_or_si512(_mm512_slli_epi32(first, 4), lane), logits[0], 4);
  const __m512 b = _mm512_i32gather_ps(_mm512_or_si512(_mm512_slli_epi32(second, 4), lane), logits[0], 4);
  const __m512 best = _mm512_max_ps(a, b), cold = _mm512_set1_ps(sampling.inverse_temperature);
  const __m512 mass = exp32_of(_mm512_mul_ps(_mm512_sub_ps(a, best), cold));
  const __m512 total = _mm512_add_ps(mass, exp32_of(_mm512_mul_ps(_mm512_sub_ps(b, best), cold)));
  const __m512 target = _mm512_mul_ps(uniform, total);
  const __mmask16 below_total = _mm512_cmp_ps_mask(total, target, _CMP_GT_OQ);
  const __mmask16 below_mass = _mm512_cmp_ps_mask(mass, target, _CMP_GT_OQ);
  const __mmask16 alone = _mm512_cmpeq_epi32_mask(first, second);
  const __m512i later = _mm512_mask_mov_epi32(_mm512_set1_epi32(S - 1), below_total, second);
  return _mm512_mask_mov_epi32(later, below_mass | alone, first);
}

// Does up to sixteen waiting cells in float32. True if one of them was drawn.
template <int S>
static __attribute__((noinline)) bool draw_waiting(const Grid& grid, const RuleTables& rule, const Sampling& sampling,
                                                   const Stream& noise, uint32_t step, const int32_t* waiting,
                                                   int count, uint8_t* states) {
  const __mmask16 there = static_cast<__mmask16>((1u << count) - 1);
  const __m512i past_the_end = _mm512_set1_epi32(grid.cells());  // for lanes without a cell
  const __m512i cell = _mm512_mask_loadu_epi32(past_the_end, there, waiting);
  alignas(64) float logits[S][One::WIDTH];
  One by_feature[NUM_FEATURES][1];
  for (int k = 0; k < NUM_FEATURES; ++k) by_feature[k][0] = One::broadcast(rule.feature_bias.value[k]);
  for (int row = 0; row < NUM_ROWS; ++row) {
    const __m512i codes[1] = {_mm512_i32gather_epi32(cell, grid.rows + row * grid.width, 2)};
    add_row(rule, row, codes, by_feature);
  }
  cell_logits<One, S>(rule, by_feature, logits);
  const __m512i rivals = cell_rivals<One, S>(logits, 0, sampling.window).value;
  const __m512i more = _mm512_and_si512(rivals, _mm512_add_epi32(rivals, _mm512_set1_epi32(-1)));
  const __m512i many = _mm512_and_si512(more, _mm512_add_epi32(more, _mm512_set1_epi32(-1)));
  const __mmask16 drawn = _mm512_test_epi32_mask(more, more) & there;
  const __m512i now = sample_pairs<S>(logits, rivals, uniforms_of(noise, step, cell, drawn), sampling);
  alignas(64) int32_t place[One::WIDTH], state[One::WIDTH];
  _mm512_store_si512(place, cell);
  _mm512_store_si512(state, now);
  for (int i = 0; i < One::WIDTH; ++i) states[place[i]] = static_cast<uint8_t>(state[i]);
  unsigned of_many = _mm512_test_epi32_mask(many, many) & there;
  if (__builtin_expect(of_many != 0, 0)) {
    alignas(64) int32_t bits[One::WIDTH];
    _mm512_store_si512(bits, rivals);
    for (; of_many; of_many &= of_many - 1) {
      const int i = __builtin_ctz(of_many);
      const uint32_t word = bits_at(noise, step, static_cast<uint32_t>(place[i])).word[0];
      states[place[i]] = sample_rivals<S>(logits, i, static_cast<unsigned>(bits[i]), sampling, word);
    }
  }
  return drawn != 0;
}

template <int S>
static bool step_coarse(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, uint8_t* states) {
  const float margin = rule.coarse.error + ROOM * sampling.window * rule.coarse.unit + 2.0f;
  if (!(margin <= WIDEST_MARGIN) || sampling.identity_bias != 0.0f) {
    return step_states<S>(grid, rule, sampling, noise, step, states);
  }
  const int cells = grid.cells();
  bool drawn = false;
  Waiting waiting;
  code_rows<S>(grid, states);
  for (int first = 0; first < cells; first += TILE) {
    alignas(64) int32_t logits[S][TILE];
    coarse_logits<S>(grid, rule.coarse, first, logits);
    const CellMask inside = ~CellMask{0} >> (64 - (cells - first < TILE ? cells - first : TILE));
    waiting.add(first, coarse_states<S>(logits, static_cast<int>(margin), states + first) & inside);
    while (__builtin_expect(waiting.count >= One::WIDTH, 0)) {
      waiting.count -= One::WIDTH;
      drawn |= draw_waiting<S>(grid, rule, sampling, noise, step, waiting.cell + waiting.count, One::WIDTH, states);
    }
  }
  if (waiting.count) drawn |= draw_waiting<S>(grid, rule, sampling, noise, step, waiting.cell, waiting.count, states);
  return !drawn && memcmp(states, grid.bordered + grid.width, static_cast<size_t>(cells)) == 0;
}

template <int S>
static void fill_all_tables(RuleTables& rule) {
  fill_tables<S>(rule);
  fill_coarse<S>(rule);
}

static void fill_all_tables_kernel(int num_states, RuleTables& rule) {
  NCA_BY_STATES(num_states, fill_all_tables, (rule));
}

static bool step_coarse_kernel(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                               uint32_t step, uint8_t* states) {
  NCA_BY_STATES(grid.num_states, step_coarse, (grid, rule, sampling, noise, step, states));
}

}  // namespace avx512_vnni

const Kernel avx512_vnni_kernel = {
    "avx512_vnni",
    avx512_vnni::words_kernel,
    avx512_vnni::truncated_normals_kernel,
    avx512_vnni::categorical_kernel,
    avx512_vnni::fill_all_tables_kernel,
    avx512_vnni::step_coarse_kernel,
    avx512_vnni::tokens_kernel,
};

}  // namespace nca
#endif
