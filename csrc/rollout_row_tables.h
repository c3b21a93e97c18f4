// Lookups of whole rows of the neighbourhood, three a cell, for kernels whose file defines `Row`: the features of CELLS
// cells with broadcast, load and store, `add`, and `Lanes::transpose` from rows to one vector per feature.

// Place of a row of states in row_table, in half entries: twice the index still fits 16 bits, and x86 scales by 8.
template <int S>
static inline uint16_t row_code(uint8_t left, uint8_t centre, uint8_t right) {
  return static_cast<uint16_t>(2 * ((left * S + centre) * S + right));
}

// Sums of RuleTables::row_table, in the order that every kernel and the reference keep: (left + centre) + right.
template <int S>
static void fill_tables(RuleTables& rule) {
  for (int row = 0; row < NUM_ROWS; ++row) {
    const Features *left = rule.table[3 * row], *centre = rule.table[3 * row + 1];
    Features* out = rule.row_table[row];
    Row right[(S + Row::CELLS - 1) / Row::CELLS];
    for (int r = 0; r < S; r += Row::CELLS) right[r / Row::CELLS] = Row::load(rule.table[3 * row + 2] + r);
    for (int l = 0; l < S; ++l) {
      const Row of_left = Row::broadcast(left[l]);
      for (int c = 0; c < S; ++c, out += S) {
        const Row sum = add(of_left, Row::broadcast(centre[c]));
        // Where the last row is not full it writes into the place of the next, which comes after it.
        for (int r = 0; r < S; r += Row::CELLS) add(sum, right[r / Row::CELLS]).store(out + r);
      }
    }
  }
}

// Sum of the three rows of the neighbourhood, top to bottom, onto the bias, of as many cells as a Row holds. `codes`
// are the cells' row codes in the grid row above theirs; those of their own and of the one below lie `width` on.
static inline __attribute__((always_inline)) Row row_features(const RuleTables& rule,
                                                              const uint16_t* const (&codes)[Row::CELLS], int width) {
  Row sum = Row::broadcast(rule.feature_bias);
  for (int row = 0; row < NUM_ROWS; ++row) sum = add(sum, Row::load(rule.row_table[row], codes, row * width));
  return sum;
}

static inline void gather_features(const Grid& grid, const RuleTables& rule, int first,
                                   Lanes (&by_feature)[NUM_FEATURES][Lanes::PACK]) {
  constexpr int ROWS = Lanes::WIDTH / Row::CELLS;
  for (int p = 0; p < Lanes::PACK; ++p) {
    Row rows[ROWS];  // row i holds cells i, i + ROWS, ...
    for (int i = 0; i < ROWS; ++i) {
      const uint16_t* codes[Row::CELLS];
      for (int c = 0; c < Row::CELLS; ++c) codes[c] = grid.rows + first + p * Lanes::WIDTH + i + c * ROWS;
      rows[i] = row_features(rule, codes, grid.width);
    }
    Lanes transposed[NUM_FEATURES];
    Lanes::transpose(rows, transposed);
    for (int k = 0; k < NUM_FEATURES; ++k) by_feature[k][p] = transposed[k];
  }
}
