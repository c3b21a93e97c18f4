// The network of a cell in integers of 16 bits, and a bound on what their logits are wrong by. Sixteen cells a vector,
// two values a lane. Part of rollout_avx512_vnni.cpp.

// How the integers are scaled, and what they are wrong by. All in floats; every bound has room for their rounding, and
// what is not a number, or infinite, ends as an infinite bound (step_coarse).
//
// Features: each neighbour's entries, less the middle of them, in a unit such that none goes beyond FEATURE_MOST; the
// middles go into the start of the hidden values. Wrong by the sum of each neighbour's largest rounding.
// Hidden values: sums of 32 bits, of which the upper 16 are kept, rounded. A unit is such that the most that one can be
// stays below HIDDEN_MOST and each weight within 16 bits. Wrong by the features, the rounding of four weights, and its
// own: HIDDEN_ERROR, which is half a unit and what floats add to it.
// Logits: a unit is such that the sum stays below LOGIT_MOST and each weight within 16 bits. What counts is the
// difference of two. It is wrong by the hidden values times the difference of their weights, by the rounding of these,
// and by SUM_ERROR each for what floats round, here and in the exact kernels.
constexpr float FEATURE_MOST = 32700.0f, HIDDEN_MOST = 32000.0f, WEIGHT_MOST = 32700.0f, LOGIT_MOST = 2.0e9f;
constexpr float HIDDEN_ERROR = 0.55f, SUM_ERROR = 6000.0f, ROOM = 1.001f;
constexpr float FLOAT_ERROR = 2e-6f;     // of a sum of up to thirty numbers, by the sum of their magnitudes
constexpr float WIDEST_MARGIN = 1.6e7f;  // wider ones leave too many cells to float32, and could overflow

struct FeatureScale {
  alignas(64) float middle[16];  // of feature k at k, k + 4, ...; so are the others
  alignas(64) float most[16];    // from the middle
  alignas(64) float size[16];    // the sum of the magnitudes that make it
  alignas(64) float unit[16];
  alignas(64) float error[16];   // in units
};

struct HiddenScale {
  alignas(64) float unit[NUM_HIDDEN];
  alignas(64) float most[NUM_HIDDEN];   // in units, as is
  alignas(64) float error[NUM_HIDDEN];
};

NCA_LANE __m512 magnitude(__m512 a) { return _mm512_abs_ps(a); }

NCA_LANE __m512 rounding(__m512 exact, __m512i rounded) {
  return magnitude(_mm512_sub_ps(_mm512_cvtepi32_ps(rounded), exact));
}

// The low halves of both: a in the lower, b in the upper 16 bits.
NCA_LANE __m512i pair_up(__m512i a, __m512i b) {
  return _mm512_mask_blend_epi16(0xAAAAAAAAu, a, _mm512_slli_epi32(b, 16));
}

// The high halves of both, likewise.
NCA_LANE __m512i high_halves(__m512i a, __m512i b) {
  const __m512i down = _mm512_set4_epi32(0x0F0E0F0E, 0x0B0A0B0A, 0x07060706, 0x03020302);
  return _mm512_mask_shuffle_epi8(b, 0x3333333333333333u, a, down);
}

// sum += a.low b.low + a.high b.high in each lane. By name, for g++ 12 copies every sum before its own built-in adds to
// it, which took a quarter of the speed.
NCA_LANE void add_products(__m512i& sum, __m512i a, __m512i b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// The largest of each quarter's four lanes, in all of them.
NCA_LANE __m512 largest_of_quarters(__m512 a) {
  a = _mm512_max_ps(a, _mm512_shuffle_f32x4(a, a, 0x4E));
  return _mm512_max_ps(a, _mm512_shuffle_f32x4(a, a, 0xB1));
}

// The entries of a neighbour for states 4 i .. 4 i + 3; those of state 0 where there are fewer.
template <int S>
NCA_LANE __m512 entries_of(const Features* table, int i) {
  const __m512 of_zero = _mm512_broadcast_f32x4(_mm_load_ps(table[0].value));
  const __mmask16 there = static_cast<__mmask16>(S - 4 * i < 4 ? (1 << 4 * (S - 4 * i)) - 1 : 0xFFFF);
  return _mm512_mask_load_ps(of_zero, there, table[4 * i].value);
}

template <int S>
static void fill_coarse_features(RuleTables& rule, FeatureScale& scale) {
  constexpr int CHUNKS = (S + 3) / 4;
  const __m512 bias = _mm512_broadcast_f32x4(_mm_load_ps(rule.feature_bias.value)), half = _mm512_set1_ps(0.5f);
  __m512 middles = bias, most = _mm512_setzero_ps(), size = magnitude(bias), middle[NUM_NEIGHBOURS];
  for (int n = 0; n < NUM_NEIGHBOURS; ++n) {
    __m512 high = entries_of<S>(rule.table[n], 0), negative_low = _mm512_sub_ps(_mm512_setzero_ps(), high);
    for (int i = 1; i < CHUNKS; ++i) {
      const __m512 entries = entries_of<S>(rule.table[n], i);
      high = _mm512_max_ps(high, entries);
      negative_low = _mm512_max_ps(negative_low, _mm512_sub_ps(_mm512_setzero_ps(), entries));
    }
    high = largest_of_quarters(high);
    negative_low = largest_of_quarters(negative_low);
    middle[n] = _mm512_mul_ps(half, _mm512_sub_ps(high, negative_low));
    middles = _mm512_add_ps(middles, middle[n]);
    most = _mm512_add_ps(most, _mm512_max_ps(_mm512_sub_ps(high, middle[n]), _mm512_add_ps(negative_low, middle[n])));
    size = _mm512_add_ps(size, _mm512_max_ps(magnitude(high), magnitude(negative_low)));
  }
  const __m512 unit = _mm512_div_ps(_mm512_set1_ps(FEATURE_MOST), most);
  __m512 error = _mm512_mul_ps(_mm512_mul_ps(size, unit), _mm512_set1_ps(FLOAT_ERROR));
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int n = 0; n < NUM_NEIGHBOURS; ++n) {
    __m512i pairs[2] = {};  // of states 0 .. 7, 8 .. 15: both pairs of a state side by side
    __m512 widest = _mm512_setzero_ps();
    for (int i = 0; i < CHUNKS; ++i) {
      const __m512 exact = _mm512_mul_ps(_mm512_sub_ps(entries_of<S>(rule.table[n], i), middle[n]), unit);
      const __m512i rounded = _mm512_cvtps_epi32(exact);
      widest = _mm512_max_ps(widest, rounding(exact, rounded));
      const __m256i four = _mm512_cvtepi32_epi16(rounded);
      pairs[i / 2] = i % 2 ? _mm512_inserti64x4(pairs[i / 2], four, 1) : _mm512_zextsi256_si512(four);
    }
    error = _mm512_add_ps(error, largest_of_quarters(widest));
    _mm512_store_si512(rule.coarse.plane[n][0], _mm512_permutex2var_epi32(pairs[0], even, pairs[1]));
    _mm512_store_si512(rule.coarse.plane[n][1], _mm512_permutex2var_epi32(pairs[0], odd, pairs[1]));
  }
  _mm512_store_ps(scale.middle, middles);
  _mm512_store_ps(scale.most, most);
  _mm512_store_ps(scale.size, size);
  _mm512_store_ps(scale.unit, unit);
  _mm512_store_ps(scale.error, error);
}

// Lanes are hidden values.
static inline void fill_coarse_hidden(RuleTables& rule, const FeatureScale& features, HiddenScale& scale) {
  const __m512i every_fourth = _mm512_set_epi32(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m512 bias = _mm512_load_ps(rule.hidden_bias);
  __m512 weight[NUM_FEATURES], middle = bias, size = magnitude(bias), top = _mm512_setzero_ps(), most = top;
  for (int k = 0; k < NUM_FEATURES; ++k) {
    weight[k] = _mm512_i32gather_ps(every_fourth, &rule.hidden_weight[0][k], 4);
    const __m512 share = _mm512_mul_ps(magnitude(weight[k]), _mm512_set1_ps(features.most[k]));
    middle = _mm512_fmadd_ps(weight[k], _mm512_set1_ps(features.middle[k]), middle);
    size = _mm512_fmadd_ps(magnitude(weight[k]), _mm512_set1_ps(features.size[k]), size);
    most = _mm512_add_ps(most, share);
    top = _mm512_max_ps(top, share);
  }
  most = _mm512_add_ps(most, magnitude(middle));
  const __m512 unit = _mm512_min_ps(_mm512_div_ps(_mm512_set1_ps(HIDDEN_MOST), most),
                                    _mm512_div_ps(_mm512_set1_ps(FEATURE_MOST / 65536.0f * WEIGHT_MOST), top));
  const __m512 shifted = _mm512_mul_ps(unit, _mm512_set1_ps(65536.0f));
  __m512 error = _mm512_setzero_ps();  // in the lower 16 bits
  for (int half = 0; half < NUM_FEATURES / 2; ++half) {
    __m512i rounded[2];
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * half + i;
      const __m512 exact = _mm512_mul_ps(weight[k], _mm512_div_ps(shifted, _mm512_set1_ps(features.unit[k])));
      rounded[i] = _mm512_cvtps_epi32(exact);
      error = _mm512_fmadd_ps(rounding(exact, rounded[i]), _mm512_set1_ps(FEATURE_MOST), error);
      error = _mm512_fmadd_ps(magnitude(_mm512_cvtepi32_ps(rounded[i])), _mm512_set1_ps(features.error[k]), error);
    }
    _mm512_store_si512(rule.coarse.hidden_weight[half], pair_up(rounded[0], rounded[1]));
  }
  const __m512i start = _mm512_cvtps_epi32(_mm512_mul_ps(middle, shifted));
  _mm512_store_si512(rule.coarse.hidden_start, _mm512_add_epi32(start, _mm512_set1_epi32(1 << 15)));
  error = _mm512_fmadd_ps(error, _mm512_set1_ps(1.0f / 65536.0f), _mm512_set1_ps(HIDDEN_ERROR));
  error = _mm512_fmadd_ps(_mm512_mul_ps(size, unit), _mm512_set1_ps(FLOAT_ERROR), error);
  _mm512_store_ps(scale.unit, unit);
  _mm512_store_ps(scale.most, _mm512_mul_ps(unit, most));
  _mm512_store_ps(scale.error, error);
}

// Lanes are states. A weight comes to the unit of a logit by that of its hidden value.
template <int S>
static void fill_coarse_logits(RuleTables& rule, const HiddenScale& hidden) {
  CoarseTables& coarse = rule.coarse;
  const __mmask16 states = static_cast<__mmask16>((1u << S) - 1);
  const __m512 bias = _mm512_maskz_load_ps(states, rule.logit_bias);
  __m512 above = magnitude(bias), below = above, widest = _mm512_setzero_ps(), weight[NUM_HIDDEN];
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    weight[j] = _mm512_maskz_load_ps(states, rule.logit_weight[j]);
    weight[j] = _mm512_div_ps(weight[j], _mm512_set1_ps(hidden.unit[j]));
    const __m512 reach = _mm512_mul_ps(weight[j], _mm512_set1_ps(hidden.most[j]));
    above = _mm512_add_ps(above, _mm512_max_ps(reach, _mm512_setzero_ps()));
    below = _mm512_sub_ps(below, _mm512_min_ps(reach, _mm512_setzero_ps()));
    widest = _mm512_max_ps(widest, magnitude(weight[j]));
  }
  const float by_sum = LOGIT_MOST / _mm512_reduce_max_ps(_mm512_max_ps(above, below));
  const float by_weight = WEIGHT_MOST / _mm512_reduce_max_ps(widest);
  coarse.unit = by_sum < by_weight ? by_sum : by_weight;
  const __m512 unit = _mm512_set1_ps(coarse.unit);
  __m512 lost = _mm512_setzero_ps();
  alignas(64) float whole[NUM_HIDDEN][MAX_STATES];
  __m512i rounded[NUM_HIDDEN];
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    const __m512 exact = _mm512_mul_ps(weight[j], unit);
    rounded[j] = _mm512_cvtps_epi32(exact);
    lost = _mm512_fmadd_ps(rounding(exact, rounded[j]), _mm512_set1_ps(hidden.most[j]), lost);
    _mm512_store_ps(whole[j], _mm512_cvtepi32_ps(rounded[j]));
  }
  for (int pair = 0; pair < NUM_HIDDEN / 2; ++pair) {
    _mm512_store_si512(coarse.logit_weight[pair], pair_up(rounded[2 * pair], rounded[2 * pair + 1]));
  }
  _mm512_store_si512(coarse.logit_start, _mm512_cvtps_epi32(_mm512_mul_ps(bias, unit)));
  __m512 error = _mm512_setzero_ps();
  for (int other = 0; other < S; ++other) {
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < NUM_HIDDEN; ++j) {
      const __m512 difference = _mm512_sub_ps(_mm512_load_ps(whole[j]), _mm512_set1_ps(whole[j][other]));
      sum = _mm512_fmadd_ps(magnitude(difference), _mm512_set1_ps(hidden.error[j]), sum);
    }
    error = _mm512_max_ps(error, sum);
  }
  // A maximum may lose what is not a number, a sum does not.
  const __m512 all = _mm512_add_ps(_mm512_add_ps(above, below), _mm512_add_ps(lost, error));
  const bool finite = _mm512_mask_cmp_ps_mask(states, all, _mm512_set1_ps(FLT_MAX), _CMP_LT_OQ) == states;
  const float most_lost = _mm512_mask_reduce_max_ps(states, lost);
  const float wrong_by = _mm512_mask_reduce_max_ps(states, error) + 2.0f * most_lost + 2.0f * SUM_ERROR;
  coarse.error = finite ? ROOM * wrong_by : HUGE_VALF;
}

template <int S>
static void fill_coarse(RuleTables& rule) {
  FeatureScale features;
  HiddenScale hidden;
  fill_coarse_features<S>(rule, features);
  fill_coarse_hidden(rule, features, hidden);
  fill_coarse_logits<S>(rule, hidden);
}

template <int S, int FIRST>
NCA_LANE void coarse_block(const CoarseTables& coarse, const __m512i (&hidden)[NUM_HIDDEN / 2][Lanes::PACK],
                           int32_t (&logits)[S][TILE]) {
  constexpr int PACK = Lanes::PACK;
  constexpr int BLOCKS = (S + Lanes::BLOCK - 1) / Lanes::BLOCK, EVEN = (S + BLOCKS - 1) / BLOCKS;
  constexpr int COUNT = S - FIRST < EVEN ? S - FIRST : EVEN;
  __m512i sum[COUNT][PACK];
  for (int s = 0; s < COUNT; ++s) {
    for (int p = 0; p < PACK; ++p) sum[s][p] = _mm512_set1_epi32(coarse.logit_start[FIRST + s]);
  }
  NCA_ROLLED
  for (int pair = 0; pair < NUM_HIDDEN / 2; ++pair) {
    for (int s = 0; s < COUNT; ++s) {
      const __m512i weight = _mm512_set1_epi32(coarse.logit_weight[pair][FIRST + s]);
      for (int p = 0; p < PACK; ++p) add_products(sum[s][p], hidden[pair][p], weight);
    }
  }
  for (int s = 0; s < COUNT; ++s) {
    for (int p = 0; p < PACK; ++p) _mm512_store_si512(&logits[FIRST + s][p * Lanes::WIDTH], sum[s][p]);
  }
  __asm__("" ::: "memory");  // or g++ 12 keeps the sums in registers that the next block needs, and copies those
  if constexpr (FIRST + COUNT < S) coarse_block<S, FIRST + COUNT>(coarse, hidden, logits);
}

template <int S>
NCA_LANE void coarse_logits(const Grid& grid, const CoarseTables& coarse, int first, int32_t (&logits)[S][TILE]) {
  constexpr int PACK = Lanes::PACK, HALVES = NUM_FEATURES / 2;
  __m512i features[HALVES][PACK];
  for (int half = 0; half < HALVES; ++half) {
    for (int p = 0; p < PACK; ++p) features[half][p] = _mm512_setzero_si512();
  }
  NCA_ROLLED
  for (int row = 0; row < NUM_ROWS; ++row) {
    for (int p = 0; p < PACK; ++p) {
      const __m512i left = load_codes(grid.rows + first + row * grid.width + p * Lanes::WIDTH);
      const __m512i place[3] = {left, _mm512_srli_epi32(left, 4), _mm512_srli_epi32(left, 8)};
      for (int column = 0; column < 3; ++column) {
        for (int half = 0; half < HALVES; ++half) {
          const __m512i entries = _mm512_load_si512(coarse.plane[3 * row + column][half]);
          const __m512i entry = _mm512_permutexvar_epi32(place[column], entries);
          features[half][p] = _mm512_add_epi16(features[half][p], entry);
        }
      }
    }
  }
  __m512i hidden[NUM_HIDDEN / 2][PACK];
  NCA_ROLLED
  for (int pair = 0; pair < NUM_HIDDEN / 2; ++pair) {
    __m512i sum[2][PACK];
    for (int i = 0; i < 2; ++i) {
      const int j = 2 * pair + i;
      for (int p = 0; p < PACK; ++p) sum[i][p] = _mm512_set1_epi32(coarse.hidden_start[j]);
      for (int half = 0; half < HALVES; ++half) {
        const __m512i weight = _mm512_set1_epi32(coarse.hidden_weight[half][j]);
        for (int p = 0; p < PACK; ++p) add_products(sum[i][p], features[half][p], weight);
      }
    }
    for (int p = 0; p < PACK; ++p) {
      const __m512i both = high_halves(sum[0][p], sum[1][p]);
      hidden[pair][p] = _mm512_max_epi16(both, _mm512_setzero_si512());
    }
  }
  coarse_block<S, 0>(coarse, hidden, logits);
}

NCA_LANE __m512i place_of_highest(__m512i bits) {
  return _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(bits));
}

// The states of the cells of a tile, into `states`. The bits that come back tell which have more than one logit within
// the margin below their best, so that their states are not known.
template <int S>
NCA_LANE CellMask coarse_states(const int32_t (&logits)[S][TILE], int margin, uint8_t* states) {
  CellMask unknown = 0;
  for (int first = 0; first < TILE; first += Lanes::WIDTH) {
    __m512i best = _mm512_load_si512(&logits[0][first]), rivals = _mm512_setzero_si512();
    for (int s = 1; s < S; ++s) best = _mm512_max_epi32(best, _mm512_load_si512(&logits[s][first]));
    const __m512i least = _mm512_sub_epi32(best, _mm512_set1_epi32(margin));
    for (int s = 0; s < S; ++s) {
      const __mmask16 mask = _mm512_cmpge_epi32_mask(_mm512_load_si512(&logits[s][first]), least);
      rivals = _mm512_mask_add_epi32(rivals, mask, rivals, _mm512_set1_epi32(1 << s));
    }
    const __m512i others = _mm512_and_si512(rivals, _mm512_add_epi32(rivals, _mm512_set1_epi32(-1)));
    const __m128i now = _mm512_cvtepi32_epi8(place_of_highest(rivals));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(states + first), now);
    unknown |= static_cast<CellMask>(_mm512_test_epi32_mask(others, others)) << first;
  }
  return unknown;
}
