// The body of a kernel, for the instruction set whose file includes it. That file defines, in its own namespace,
// `Lanes`: WIDTH cells with broadcast, load, store, store_bytes, PACK and BLOCK (nca_cell.h), `Row`: the features of
// CELLS cells, `Lanes::transpose` from rows to one vector per feature, and the free functions add, fma, larger, smaller,
// positive_part, select_greater, at_least.

constexpr int TILE = Lanes::PACK * Lanes::WIDTH;  // cells that are worked on together

// Draws the cells of one vector whose best state is not alone within the window.
template <int S>
static void sample_doubtful(const Sampling& sampling, const Stream& noise, uint32_t step, int first, unsigned doubtful,
                            const Lanes (&logits)[S][Lanes::PACK], int p, const Lanes& best, uint8_t* states) {
  alignas(64) float spilled[S][Lanes::WIDTH], bests[Lanes::WIDTH];
  for (int s = 0; s < S; ++s) logits[s][p].store(spilled[s]);
  best.store(bests);
  for (int lane = 0; lane < Lanes::WIDTH; ++lane) {
    if (!(doubtful >> lane & 1)) continue;
    const uint32_t bits = bits_at(noise, step, static_cast<uint32_t>(first + lane)).word[0];
    states[lane] = cell_sample(&spilled[0][lane], Lanes::WIDTH, S, bests[lane], sampling, bits);
  }
}

// Logits of the present states rise by the identity bias.
template <int S>
static void add_identity_bias(const Sampling& sampling, const uint8_t* states, Lanes (&logits)[S][Lanes::PACK]) {
  alignas(64) float spilled[S][TILE];
  for (int s = 0; s < S; ++s) {
    for (int p = 0; p < Lanes::PACK; ++p) logits[s][p].store(spilled[s] + p * Lanes::WIDTH);
  }
  for (int cell = 0; cell < TILE; ++cell) spilled[states[cell]][cell] += sampling.identity_bias;
  for (int s = 0; s < S; ++s) {
    for (int p = 0; p < Lanes::PACK; ++p) logits[s][p] = Lanes::load(spilled[s] + p * Lanes::WIDTH);
  }
}

// The row index of every cell, rows in chunks of a fixed length that the next row overwrites.
template <int S>
static inline void index_rows(const Grid& grid, const uint8_t* states) {
  constexpr int CHUNK = 16;
  static_assert(CHUNK <= SLACK, "");
  const int height = grid.height, width = grid.width, stride = width + 2;
  for (int y = 0; y < height; ++y) {
    const uint8_t* row = states + y * width;
    uint8_t* to = grid.bordered + y * stride;
    for (int x = 0; x < width; x += CHUNK) memcpy(to + 1 + x, row + x, CHUNK);
    to[0] = row[width - 1];
    to[width + 1] = row[0];
  }
  for (int y = -1; y <= height; ++y) {
    const uint8_t* row = grid.bordered + (y < 0 ? height - 1 : y < height ? y : 0) * stride;
    uint16_t* to = grid.rows + (y + 1) * width;
    for (int x = 0; x < width; x += CHUNK) {
      for (int i = x; i < x + CHUNK; ++i) to[i] = row_index<S>(row[i], row[i + 1], row[i + 2]);
    }
  }
}

static inline void gather_features(const Grid& grid, const RuleTables& rule, int first,
                                   Lanes (&by_feature)[NUM_FEATURES][Lanes::PACK]) {
  constexpr int ROWS = Lanes::WIDTH / Row::CELLS;
  for (int p = 0; p < Lanes::PACK; ++p) {
    Row rows[ROWS];  // row i holds cells i, i + ROWS, ...
    for (int i = 0; i < ROWS; ++i) {
      const uint16_t* cells[Row::CELLS];
      for (int c = 0; c < Row::CELLS; ++c) cells[c] = grid.rows + first + p * Lanes::WIDTH + i + c * ROWS;
      rows[i] = cell_features<Row>(rule, cells, grid.width);
    }
    Lanes transposed[NUM_FEATURES];
    Lanes::transpose(rows, transposed);
    for (int k = 0; k < NUM_FEATURES; ++k) by_feature[k][p] = transposed[k];
  }
}

template <int S>
static bool step_states(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, uint8_t* states) {
  const int cells = grid.cells();
  bool settled = true;
  index_rows<S>(grid, states);
  for (int first = 0; first < cells; first += TILE) {
    Lanes by_feature[NUM_FEATURES][Lanes::PACK], logits[S][Lanes::PACK], best[Lanes::PACK];
    Lanes::Tally tally[Lanes::PACK];
    gather_features(grid, rule, first, by_feature);
    cell_logits<Lanes, S>(rule, by_feature, logits);
    if (sampling.identity_bias != 0.0f) add_identity_bias<S>(sampling, states + first, logits);
    for (int p = 0; p < Lanes::PACK; ++p) cell_tally<Lanes, S>(logits, p, sampling.window, best[p], tally[p]);
    const int count = cells - first < TILE ? cells - first : TILE;
    unsigned changed, doubtful;
    Lanes::store_states(tally, states + first, changed, doubtful);
    const unsigned inside = ~0u >> (32 - count);
    settled &= ((changed | doubtful) & inside) == 0;
    if (__builtin_expect((doubtful & inside) != 0, 0)) {
      for (int p = 0; p < Lanes::PACK; ++p) {
        const unsigned here = (doubtful & inside) >> p * Lanes::WIDTH;
        const int place = first + p * Lanes::WIDTH;
        sample_doubtful<S>(sampling, noise, step, place, here, logits, p, best[p], states + place);
      }
    }
  }
  memset(states + cells, 0, SLACK);  // what cells past the end came to need not be a state
  return settled;
}

static bool step_kernel(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, uint8_t* states) {
  switch (grid.num_states) {
#define NCA_CASE(S) \
  case S:           \
    return step_states<S>(grid, rule, sampling, noise, step, states)
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
  return false;
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
