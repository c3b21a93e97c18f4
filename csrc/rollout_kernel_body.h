// The body of a kernel, for the instruction set whose file includes it. That file defines, in its own namespace,
// `Lanes`: WIDTH cells with broadcast, load, store, their Rivals, store_states, PACK and BLOCK (nca_cell.h); `Slots`:
// COUNT words of 32 bits with room for a product; the free functions on these; and how rows of the neighbourhood are
// looked up: `row_code` of three states, `fill_tables` and `gather_features` (rollout_row_tables.h or its own).

constexpr int TILE = TILE_CELLS<Lanes>;  // cells that are worked on together; a CellMask has room for them

// cell_sample without a branch a state, of the states whose bits are set in `rivals`, two or more. Others add nothing
// to the sums, and the last state is what remains.
template <int S, int CELLS>
static inline uint8_t sample_rivals(const float (&logits)[S][CELLS], int cell, unsigned rivals,
                                    const Sampling& sampling, uint32_t bits) {
  float best = logits[__builtin_ctz(rivals)][cell], total = 0.0f, cumulative[S];
  for (unsigned left = rivals & (rivals - 1); left; left &= left - 1) {
    const float logit = logits[__builtin_ctz(left)][cell];
    best = logit > best ? logit : best;
  }
  int count = 0;
  for (unsigned left = rivals; left; left &= left - 1) {
    const float logit = logits[__builtin_ctz(left)][cell];
    cumulative[count++] = total += exp32((logit - best) * sampling.inverse_temperature);
  }
  const float target = unit_uniform(bits) * total;
  for (int i = 0; i < count; ++i, rivals &= rivals - 1) {
    if (cumulative[i] > target) return static_cast<uint8_t>(__builtin_ctz(rivals));
  }
  return S - 1;
}

// The same of two rivals, which is nearly always so, without any branch.
template <int S, int CELLS>
static inline uint8_t sample_two(const float (&logits)[S][CELLS], int cell, unsigned rivals, const Sampling& sampling,
                                 uint32_t bits) {
  const int first = __builtin_ctz(rivals), second = 31 - __builtin_clz(rivals);
  const float a = logits[first][cell], b = logits[second][cell], best = b > a ? b : a;
  const float mass = exp32((a - best) * sampling.inverse_temperature);
  const float total = mass + exp32((b - best) * sampling.inverse_temperature);
  const float target = unit_uniform(bits) * total;
  const int second_or_last = total > target ? second : S - 1;
  return static_cast<uint8_t>(mass > target ? first : second_or_last);
}

// Draws the cells of a tile whose best state is not alone within the window.
template <int S>
static __attribute__((noinline)) void sample_doubtful(const Sampling& sampling, const Stream& noise, uint32_t step,
                                                      int first, CellMask doubtful,
                                                      const Lanes::Rivals (&of_cells)[Lanes::PACK],
                                                      const float (&logits)[S][TILE], uint8_t* states) {
  alignas(64) int32_t rivals[TILE];
  for (int p = 0; p < Lanes::PACK; ++p) of_cells[p].store(rivals + p * Lanes::WIDTH);
  for (; doubtful; doubtful &= doubtful - 1) {
    const int cell = __builtin_ctzll(doubtful);
    const unsigned here = static_cast<unsigned>(rivals[cell]), more = here & (here - 1);
    const uint32_t bits = bits_at(noise, step, static_cast<uint32_t>(first + cell)).word[0];
    states[first + cell] = __builtin_expect((more & (more - 1)) == 0, 1)
                               ? sample_two<S>(logits, cell, here, sampling, bits)
                               : sample_rivals<S>(logits, cell, here, sampling, bits);
  }
}

// In chunks of a fixed length, without a call: what comes after `to` is overwritten, up to SLACK bytes.
static inline void copy_over(uint8_t* to, const uint8_t* from, int count) {
  for (int i = 0; i < count; i += SLACK) memcpy(to + i, from + i, SLACK);
}

// The code of every cell's row of three states, columns wrapped; the last row of cells stands before the first too, and
// the first after the last. What codes past the end come to does not matter, but they are of states.
template <int S>
static inline void code_rows(const Grid& grid, const uint8_t* states) {
  const int cells = grid.cells(), width = grid.width;
  uint8_t* bordered = grid.bordered;
  copy_over(bordered, states + cells - width, width);
  copy_over(bordered + width, states, cells);
  copy_over(bordered + width + cells, states, width);
  const uint8_t *__restrict__ at_left = grid.at_left, *__restrict__ at_right = grid.at_right;
  uint16_t* __restrict__ codes = grid.rows;
  for (int first = 0; first < cells + 2 * width; first += SLACK) {
    for (int i = first; i < first + SLACK; ++i) {
      const uint8_t left = (bordered[i - 1] & ~at_left[i]) | (bordered[i + width - 1] & at_left[i]);
      const uint8_t right = (bordered[i + 1] & ~at_right[i]) | (bordered[i - width + 1] & at_right[i]);
      codes[i] = row_code<S>(left, bordered[i], right);
    }
  }
}

template <int S>
static bool step_states(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, uint8_t* states) {
  const int cells = grid.cells();
  bool settled = true;
  code_rows<S>(grid, states);
  for (int first = 0; first < cells; first += TILE) {
    alignas(64) float logits[S][TILE];
    Lanes by_feature[NUM_FEATURES][Lanes::PACK];
    Lanes::Rivals rivals[Lanes::PACK];
    gather_features(grid, rule, first, by_feature);
    cell_logits<Lanes, S>(rule, by_feature, logits);
    if (sampling.identity_bias != 0.0f) {  // logits of the present states rise
      for (int cell = 0; cell < TILE; ++cell) logits[states[first + cell]][cell] += sampling.identity_bias;
    }
    for (int p = 0; p < Lanes::PACK; ++p) rivals[p] = cell_rivals<Lanes, S>(logits, p * Lanes::WIDTH, sampling.window);
    const CellMask inside = ~CellMask{0} >> (64 - (cells - first < TILE ? cells - first : TILE));
    CellMask changed, doubtful;
    Lanes::store_states(rivals, states + first, changed, doubtful);
    settled &= ((changed | doubtful) & inside) == 0;
    if (__builtin_expect((doubtful & inside) != 0, 0)) {
      sample_doubtful<S>(sampling, noise, step, first, doubtful & inside, rivals, logits, states);
    }
  }
  return settled;
}

// function<num_states> arguments
#define NCA_CASE(S, function, arguments) \
  case S:                                \
    return function<S> arguments
#define NCA_BY_STATES(num_states, function, arguments) \
  switch (num_states) {                                \
    NCA_CASE(2, function, arguments);                  \
    NCA_CASE(3, function, arguments);                  \
    NCA_CASE(4, function, arguments);                  \
    NCA_CASE(5, function, arguments);                  \
    NCA_CASE(6, function, arguments);                  \
    NCA_CASE(7, function, arguments);                  \
    NCA_CASE(8, function, arguments);                  \
    NCA_CASE(9, function, arguments);                  \
    NCA_CASE(10, function, arguments);                 \
    NCA_CASE(11, function, arguments);                 \
    NCA_CASE(12, function, arguments);                 \
    NCA_CASE(13, function, arguments);                 \
    NCA_CASE(14, function, arguments);                 \
    NCA_CASE(15, function, arguments);                 \
    default:                                           \
      return function<16> arguments;                   \
  }

static bool step_kernel(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, uint8_t* states) {
  NCA_BY_STATES(grid.num_states, step_states, (grid, rule, sampling, noise, step, states));
}

// Philox (counter_rng.h) of many counters at once: a word is the low half of a 64-bit slot, the high half is ignored.
template <int GROUP>
static inline __attribute__((always_inline)) void philox_rounds(const Stream& stream, Slots (&word)[4][GROUP]) {
  uint32_t key0 = static_cast<uint32_t>(stream.seed), key1 = static_cast<uint32_t>(stream.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int g = 0; g < GROUP; ++g) {
      const Slots left = multiply(word[0][g], 0xD2511F53u), right = multiply(word[2][g], 0xCD9E8D57u);
      word[0][g] = exclusive_or(high_half(right), exclusive_or(word[1][g], Slots::broadcast(key0)));
      word[1][g] = right;
      word[2][g] = exclusive_or(high_half(left), exclusive_or(word[3][g], Slots::broadcast(key1)));
      word[3][g] = left;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

static void words_kernel(const Stream& stream, int count, uint32_t* words) {
  constexpr int GROUP = 2;  // vectors of draws in flight
  static_assert(4 * GROUP * Slots::COUNT <= SLACK, "");
  for (int first = 0; 4 * first < count; first += GROUP * Slots::COUNT) {
    Slots word[4][GROUP];
    for (int g = 0; g < GROUP; ++g) {
      word[0][g] = Slots::ascending(static_cast<uint32_t>(first + g * Slots::COUNT) | stream.purpose << 24);
      word[1][g] = Slots::broadcast(0);
      word[2][g] = Slots::broadcast(stream.candidate);
      word[3][g] = Slots::broadcast(stream.repeat);
    }
    philox_rounds(stream, word);
    for (int g = 0; g < GROUP; ++g) {
      Slots::store(word[0][g], word[1][g], word[2][g], word[3][g], words + 4 * (first + g * Slots::COUNT));
    }
  }
}

static void truncated_normals_kernel(const uint32_t* words, int count, float* values) {
  for (int i = 0; i < count; ++i) values[i] = truncated_normal(symmetric_uniform(words[i]));
}

static void categorical_kernel(const uint32_t* words, int count, const uint32_t* logit_words, int num_states,
                               uint8_t* states) {
  constexpr int CHUNK = 32;
  static_assert(CHUNK <= SLACK && MAX_STATES <= SLACK, "");
  float logits[MAX_STATES], cumulative[MAX_STATES], best = -3.0e38f, total = 0.0f;
  for (int s = 0; s < MAX_STATES; ++s) logits[s] = standard_normal(symmetric_uniform(logit_words[s]));
  for (int s = 0; s < num_states; ++s) best = logits[s] > best ? logits[s] : best;
  for (int s = 0; s < MAX_STATES; ++s) logits[s] = exp32(logits[s] - best);
  for (int s = 0; s < num_states; ++s) cumulative[s] = total += logits[s];
  for (int first = 0; first < count; first += CHUNK) {
    float target[CHUNK];
    int32_t state[CHUNK] = {};
    for (int i = 0; i < CHUNK; ++i) target[i] = unit_uniform(words[first + i]) * total;
    for (int s = 0; s + 1 < num_states; ++s) {
      for (int i = 0; i < CHUNK; ++i) state[i] += cumulative[s] <= target[i];
    }
    for (int i = 0; i < CHUNK; ++i) states[first + i] = static_cast<uint8_t>(state[i]);
  }
}

static void fill_tables_kernel(int num_states, RuleTables& rule) { NCA_BY_STATES(num_states, fill_tables, (rule)); }

// Tokens of patches of 2x2, a row of patches in chunks of a fixed length that the next row overwrites. Two neighbours
// are read as one number of 16 bits, the left one low.
static inline void tokens_of_squares(const Grid& grid, const uint8_t* states, uint32_t* tokens) {
  constexpr int CHUNK = 8;
  static_assert(2 * CHUNK <= SLACK, "");
  const uint32_t base = static_cast<uint32_t>(grid.num_states);
  const auto value = [base](uint16_t pair) { return (pair >> 8) * base + (pair & 0xFFu); };
  for (int y = 0; y < grid.height; y += 2) {
    for (int x = 0; x < grid.width; x += 2 * CHUNK) {
      uint16_t above[CHUNK], below[CHUNK];
      memcpy(above, states + y * grid.width + x, sizeof above);
      memcpy(below, states + (y + 1) * grid.width + x, sizeof below);
      uint32_t* to = tokens + (y * grid.width / 2 + x) / 2;
      for (int i = 0; i < CHUNK; ++i) to[i] = value(below[i]) * (base * base) + value(above[i]);
    }
  }
}

static void tokens_kernel(const Grid& grid, int patch, const uint8_t* states, uint32_t* tokens) {
  if (patch == 2) return tokens_of_squares(grid, states, tokens);
  for (int row = 0; row < grid.height; row += patch) {
    for (int column = 0; column < grid.width; column += patch) {
      uint32_t token = 0;
      for (int y = patch - 1; y >= 0; --y) {
        for (int x = patch - 1; x >= 0; --x) {
          token = token * static_cast<uint32_t>(grid.num_states) + states[(row + y) * grid.width + column + x];
        }
      }
      *tokens++ = token;
    }
  }
}

#define NCA_KERNEL(name) \
  { #name, name::words_kernel, name::truncated_normals_kernel, name::categorical_kernel, name::fill_tables_kernel, \
    name::step_kernel, name::tokens_kernel }
