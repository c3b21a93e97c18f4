// The body of a kernel, for the instruction set whose file includes it. That file defines, in its own namespace,
// `Lanes`: WIDTH cells with broadcast, load, store, store_bytes, PACK and BLOCK (nca_cell.h), `Row`: the features of
// CELLS cells, `Lanes::transpose` from rows to one vector per feature, and the free functions add, fma, larger, smaller,
// positive_part, select_greater, at_least.

constexpr int TILE = Lanes::PACK * Lanes::WIDTH;  // cells that are worked on together

// Draws the cells of one vector whose best state is not alone within the window.
template <int S>
static void sample_doubtful(const Grid& grid, const Sampling& sampling, const Stream& noise, uint32_t step, int first,
                            unsigned doubtful, const Lanes (&logits)[S][Lanes::PACK], int p, const Lanes& best,
                            uint8_t* states) {
  alignas(64) float spilled[S][Lanes::WIDTH], bests[Lanes::WIDTH];
  for (int s = 0; s < S; ++s) logits[s][p].store(spilled[s]);
  best.store(bests);
  for (int lane = 0; lane < Lanes::WIDTH && first + lane < grid.cells; ++lane) {
    if (!(doubtful >> lane & 1)) continue;
    const uint32_t bits = bits_at(noise, step, static_cast<uint32_t>(first + lane)).word[0];
    states[first + lane] = cell_sample(&spilled[0][lane], Lanes::WIDTH, S, bests[lane], sampling, bits);
  }
}

// Logits of the present states rise by the identity bias.
template <int S>
static void add_identity_bias(const Grid& grid, const Sampling& sampling, const uint8_t* before, int first,
                              Lanes (&logits)[S][Lanes::PACK]) {
  alignas(64) float spilled[S][TILE];
  for (int s = 0; s < S; ++s) {
    for (int p = 0; p < Lanes::PACK; ++p) logits[s][p].store(spilled[s] + p * Lanes::WIDTH);
  }
  for (int cell = 0; cell < TILE; ++cell) {
    spilled[before[grid.offsets[first + cell]]][cell] += sampling.identity_bias;
  }
  for (int s = 0; s < S; ++s) {
    for (int p = 0; p < Lanes::PACK; ++p) logits[s][p] = Lanes::load(spilled[s] + p * Lanes::WIDTH);
  }
}

// The row index of every place of a bordered grid, its two ends excepted.
template <int S>
static inline void index_rows(const Grid& grid, const uint8_t* states) {
  const int places = (grid.height + 2) * grid.stride;
  for (int i = 1; i < places - 1; ++i) grid.rows[i] = row_index<S>(states[i - 1], states[i], states[i + 1]);
}

static inline void gather_features(const Grid& grid, const RuleTables& rule, int first,
                                   Lanes (&by_feature)[NUM_FEATURES][Lanes::PACK]) {
  constexpr int ROWS = Lanes::WIDTH / Row::CELLS;
  for (int p = 0; p < Lanes::PACK; ++p) {
    const int32_t* offsets = grid.offsets + first + p * Lanes::WIDTH;
    Row rows[ROWS];  // row i holds cells i, i + ROWS, ...
    for (int i = 0; i < ROWS; ++i) {
      const uint16_t* cells[Row::CELLS];
      for (int c = 0; c < Row::CELLS; ++c) cells[c] = grid.rows + offsets[i + c * ROWS];
      rows[i] = cell_features<Row>(rule, cells, grid.stride);
    }
    Lanes transposed[NUM_FEATURES];
    Lanes::transpose(rows, transposed);
    for (int k = 0; k < NUM_FEATURES; ++k) by_feature[k][p] = transposed[k];
  }
}

template <int S>
static void step_states(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, const uint8_t* before, uint8_t* after) {
  uint8_t* states = grid.scratch;
  index_rows<S>(grid, before);
  for (int first = 0; first < grid.cells; first += TILE) {
    Lanes by_feature[NUM_FEATURES][Lanes::PACK], logits[S][Lanes::PACK], index[Lanes::PACK];
    gather_features(grid, rule, first, by_feature);
    cell_logits<Lanes, S>(rule, by_feature, logits);
    if (sampling.identity_bias != 0.0f) add_identity_bias<S>(grid, sampling, before, first, logits);
    Lanes best[Lanes::PACK], second[Lanes::PACK];
    for (int p = 0; p < Lanes::PACK; ++p) cell_best<Lanes, S>(logits, p, best[p], second[p], index[p]);
    Lanes::store_bytes(index, states + first);
    for (int p = 0; p < Lanes::PACK; ++p) {
      const unsigned doubtful = at_least(second[p], best[p], sampling.window);
      if (__builtin_expect(doubtful != 0, 0)) {
        sample_doubtful<S>(grid, sampling, noise, step, first + p * Lanes::WIDTH, doubtful, logits, p, best[p], states);
      }
    }
  }
  for (int row = 0; row < grid.height; ++row) {
    memcpy(after + (row + 1) * grid.stride + 1, states + row * grid.width, static_cast<size_t>(grid.width));
  }
}

static void step_kernel(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, const uint8_t* before, uint8_t* after) {
  switch (grid.num_states) {
#define NCA_CASE(S) \
  case S:           \
    return step_states<S>(grid, rule, sampling, noise, step, before, after)
    NCA_CASE(2);
    NCA_CASE(3);
    NCA_CASE(4);
    NCA_CASE(5);
    NCA_CASE(6);
    NCA_CASE(7);
    NCA_CASE(8);
    NCA_CASE(9);
    NCA_CASE(10);
    NCA_CASE(11);
    NCA_CASE(12);
    NCA_CASE(13);
    NCA_CASE(14);
    NCA_CASE(15);
    NCA_CASE(16);
#undef NCA_CASE
  }
}

static void truncated_normals_kernel(const Stream& stream, int count, float* values) {
  constexpr int CHUNK = 32;
  uint32_t words[4 * CHUNK];
  for (int first = 0; first < count; first += 4 * CHUNK) {
    for (int i = 0; i < CHUNK; ++i) {
      const Bits bits = bits_at(stream, 0, static_cast<uint32_t>(first / 4 + i));
      for (int k = 0; k < 4; ++k) words[4 * i + k] = bits.word[k];
    }
    const int here = count - first < 4 * CHUNK ? count - first : 4 * CHUNK;
    for (int i = 0; i < here; ++i) values[first + i] = truncated_normal(symmetric_uniform(words[i]));
  }
}
