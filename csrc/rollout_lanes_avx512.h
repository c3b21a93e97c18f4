// Sixteen cells a vector: what the files of AVX-512 must define for rollout_kernel_body.h. Each has a copy in its own
// namespace.

#define NCA_LANE static inline __attribute__((always_inline))

struct LanesRivals {
  __m512i value;
  __attribute__((always_inline)) void store(int32_t* to) const { _mm512_store_si512(to, value); }
};

template <int VECTORS>
struct LanesOf {
  static constexpr int WIDTH = 16;
  static constexpr int PACK = VECTORS, BLOCK = 5;
  typedef LanesRivals Rivals;
  __m512 value;

  NCA_LANE LanesOf broadcast(float value) { return {_mm512_set1_ps(value)}; }
  NCA_LANE LanesOf load(const float* from) { return {_mm512_load_ps(from)}; }
  // New states for old, of cells with one rival; bit i of the masks tells of cell i.
  NCA_LANE void store_states(const Rivals (&rivals)[PACK], uint8_t* states, CellMask& changed, CellMask& doubtful) {
    changed = doubtful = 0;
    for (int p = 0; p < PACK; ++p) {
      const __m512i bits = rivals[p].value, all_but_last = _mm512_add_epi32(bits, _mm512_set1_epi32(-1));
      const __m512i last = _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(bits));
      const __m128i now = _mm512_cvtepi32_epi8(last);
      __m128i* place = reinterpret_cast<__m128i*>(states + p * WIDTH);
      changed |= static_cast<CellMask>(_mm_cmpneq_epi8_mask(now, _mm_loadu_si128(place))) << p * WIDTH;
      doubtful |= static_cast<CellMask>(_mm512_test_epi32_mask(bits, all_but_last)) << p * WIDTH;
      _mm_storeu_si128(place, now);
    }
  }
  __attribute__((always_inline)) void store(float* to) const { _mm512_store_ps(to, value); }
};

template <int P>
NCA_LANE LanesOf<P> fma(LanesOf<P> a, LanesOf<P> b, LanesOf<P> c) {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
template <int P>
NCA_LANE LanesOf<P> larger(LanesOf<P> a, LanesOf<P> b) { return {_mm512_max_ps(a.value, b.value)}; }
template <int P>
NCA_LANE LanesOf<P> positive_part(LanesOf<P> a) { return {_mm512_max_ps(a.value, _mm512_setzero_ps())}; }
template <int P>
NCA_LANE LanesOf<P> operator-(LanesOf<P> a, float b) { return {_mm512_sub_ps(a.value, _mm512_set1_ps(b))}; }
template <int P>
NCA_LANE LanesRivals add_where_at_least(LanesRivals rivals, LanesOf<P> logit, LanesOf<P> least, int what) {
  const __mmask16 mask = _mm512_cmp_ps_mask(logit.value, least.value, _CMP_GE_OQ);
  return {_mm512_mask_add_epi32(rivals.value, mask, rivals.value, _mm512_set1_epi32(what))};
}

using Lanes = LanesOf<3>;  // 15 sums, 3 hidden values and a weight in 32 registers; 12x12 cells are three tiles

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

// Adds a row of the neighbourhood, (left + centre) + right, onto what the rows above it and the bias came to.
template <int P>
NCA_LANE void add_row(const RuleTables& rule, int row, const __m512i (&codes)[P],
                      LanesOf<P> (&by_feature)[NUM_FEATURES][P]) {
  __m512i centre[P], right[P];
  for (int p = 0; p < P; ++p) {
    centre[p] = _mm512_srli_epi32(codes[p], 4);
    right[p] = _mm512_srli_epi32(codes[p], 8);
  }
  for (int k = 0; k < NUM_FEATURES; ++k) {
    const __m512 a = _mm512_load_ps(rule.plane[3 * row][k]), b = _mm512_load_ps(rule.plane[3 * row + 1][k]),
                 c = _mm512_load_ps(rule.plane[3 * row + 2][k]);
    for (int p = 0; p < P; ++p) {
      const __m512 pair = _mm512_add_ps(_mm512_permutexvar_ps(codes[p], a), _mm512_permutexvar_ps(centre[p], b));
      const __m512 sum = _mm512_add_ps(pair, _mm512_permutexvar_ps(right[p], c));
      by_feature[k][p].value = _mm512_add_ps(by_feature[k][p].value, sum);
    }
  }
}

NCA_LANE __m512i load_codes(const uint16_t* codes) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
}

NCA_LANE void gather_features(const Grid& grid, const RuleTables& rule, int first,
                              Lanes (&by_feature)[NUM_FEATURES][Lanes::PACK]) {
  for (int k = 0; k < NUM_FEATURES; ++k) {
    for (int p = 0; p < Lanes::PACK; ++p) by_feature[k][p] = Lanes::broadcast(rule.feature_bias.value[k]);
  }
  NCA_ROLLED
  for (int row = 0; row < NUM_ROWS; ++row) {
    __m512i codes[Lanes::PACK];
    for (int p = 0; p < Lanes::PACK; ++p) {
      codes[p] = load_codes(grid.rows + first + row * grid.width + p * Lanes::WIDTH);
    }
    add_row(rule, row, codes, by_feature);
  }
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
