// The body of a kernel, for the instruction set whose file includes it. That file defines, in its own namespace,
// `Lanes`: WIDTH cells with broadcast, load, store, their Tally, store_states, PACK and BLOCK (nca_cell.h); `Slots`:
// COUNT words of 32 bits with room for a product; the free functions on these; and how rows of the neighbourhood are
// looked up: `row_code` of three states, `fill_tables` and `gather_features` (rollout_row_tables.h or its own).

constexpr int TILE = TILE_CELLS<Lanes>;  // cells that are worked on together

// cell_sample with the states side by side and without branches: the cells that come here differ in which states count.
template <int S>
static inline uint8_t sample_states(const float (&logits)[S][TILE], int cell, const Sampling& sampling, uint32_t bits) {
  alignas(64) float logit[MAX_STATES], scaled[MAX_STATES], mass[MAX_STATES];
  float cumulative[S];
  for (int s = 0; s < MAX_STATES; ++s) logit[s] = logits[s < S ? s : 0][cell];
  float best = logit[0];
  for (int s = 1; s < S; ++s) best = logit[s] > best ? logit[s] : best;
  const float least = best - sampling.window;
  for (int s = 0; s < MAX_STATES; ++s) {
    scaled[s] = (logit[s] >= least ? logit[s] - best : 0.0f) * sampling.inverse_temperature;
  }
  for (int s = 0; s < MAX_STATES; ++s) mass[s] = exp32(scaled[s]);
  for (int s = 0; s < MAX_STATES; ++s) mass[s] = logit[s] >= least ? mass[s] : 0.0f;
  float total = 0.0f;
  for (int s = 0; s < S; ++s) cumulative[s] = total += mass[s];
  const float target = unit_uniform(bits) * total;
  int state = 0;
  for (int s = 0; s + 1 < S; ++s) state += cumulative[s] <= target;
  return static_cast<uint8_t>(state);
}

// Draws the cells of a tile whose best state is not alone within the window.
template <int S>
static __attribute__((noinline)) void sample_doubtful(const Sampling& sampling, const Stream& noise, uint32_t step,
                                                      int first, unsigned doubtful, const float (&logits)[S][TILE],
                                                      uint8_t* states) {
  for (; doubtful; doubtful &= doubtful - 1) {
    const int cell = __builtin_ctz(doubtful);
    const uint32_t bits = bits_at(noise, step, static_cast<uint32_t>(first + cell)).word[0];
    states[first + cell] = sample_states<S>(logits, cell, sampling, bits);
  }
}

// The code of every cell's row of three states, rows in chunks of a fixed length that the next row overwrites.
template <int S>
static inline void code_rows(const Grid& grid, const uint8_t* states) {
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
    uint16_t* __restrict__ to = grid.rows + (y + 1) * width;
    for (int x = 0; x < width; x += CHUNK) {
      for (int i = x; i < x + CHUNK; ++i) to[i] = row_code<S>(row[i], row[i + 1], row[i + 2]);
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
    Lanes::Tally tally[Lanes::PACK];
    gather_features(grid, rule, first, by_feature);
    cell_logits<Lanes, S>(rule, by_feature, logits);
    if (sampling.identity_bias != 0.0f) {  // logits of the present states rise
      for (int cell = 0; cell < TILE; ++cell) logits[states[first + cell]][cell] += sampling.identity_bias;
    }
    for (int p = 0; p < Lanes::PACK; ++p) tally[p] = cell_tally<Lanes, S>(logits, p * Lanes::WIDTH, sampling.window);
    const unsigned inside = ~0u >> (32 - (cells - first < TILE ? cells - first : TILE));
    unsigned changed, doubtful;
    Lanes::store_states(tally, states + first, changed, doubtful);
    settled &= ((changed | doubtful) & inside) == 0;
    if (__builtin_expect((doubtful & inside) != 0, 0)) {
      sample_doubtful<S>(sampling, noise, step, first, doubtful & inside, logits, states);
    }
  }
  memset(states + cells, 0, SLACK);  // what cells past the end came to need not be a state
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

// Tokens of patches of 2x2, a row of patches in chunks of a fixed length that the next row overwrites.
static inline void tokens_of_squares(const Grid& grid, const uint8_t* states, uint32_t* tokens) {
  constexpr int CHUNK = 8;
  static_assert(2 * CHUNK <= SLACK, "");
  const uint32_t base = static_cast<uint32_t>(grid.num_states);
  for (int y = 0; y < grid.height; y += 2) {
    for (int x = 0; x < grid.width; x += 2 * CHUNK) {
      const uint8_t *above = states + y * grid.width + x, *below = above + grid.width;
      uint32_t* to = tokens + (y * grid.width / 2 + x) / 2;
      for (int i = 0; i < CHUNK; ++i) {
        to[i] = (below[2 * i + 1] * base + below[2 * i]) * (base * base) + above[2 * i + 1] * base + above[2 * i];
      }
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
