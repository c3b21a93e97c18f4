// The body of a kernel, for the instruction set whose file includes it. That file defines, in its own namespace,
// `Lanes`: WIDTH cells with broadcast, load, store, transpose (features of WIDTH cells -> one vector per feature), and
// the free functions fma, larger, smaller, positive_part, select_greater, at_least.

template <int S>
static inline void finish_tile(const Grid& grid, const Sampling& sampling, const Stream& noise, uint32_t step,
                               int first, const Lanes (&logits)[S], const Lanes& best, const Lanes& second, const Lanes& index,
                               uint8_t* after) {
  alignas(64) float indices[Lanes::WIDTH];
  index.store(indices);
  for (int lane = 0; lane < Lanes::WIDTH; ++lane) {
    after[grid.offsets[first + lane]] = static_cast<uint8_t>(static_cast<int32_t>(indices[lane]));
  }
  const unsigned doubtful = at_least(second, best, sampling.window);
  if (__builtin_expect(doubtful == 0, 1)) return;
  alignas(64) float spilled[S][Lanes::WIDTH], bests[Lanes::WIDTH];
  for (int s = 0; s < S; ++s) logits[s].store(spilled[s]);
  best.store(bests);
  for (int lane = 0; lane < Lanes::WIDTH && first + lane < grid.cells; ++lane) {
    if (!(doubtful >> lane & 1)) continue;
    const uint32_t bits = bits_at(noise, step, static_cast<uint32_t>(first + lane)).word[0];
    after[grid.offsets[first + lane]] = cell_sample(&spilled[0][lane], Lanes::WIDTH, S, bests[lane], sampling, bits);
  }
}

// Logits of the present states rise by the identity bias.
template <int S>
static inline void add_identity_bias(const Grid& grid, const Sampling& sampling, const uint8_t* before, int first,
                                     Lanes (&logits)[S]) {
  if (sampling.identity_bias == 0.0f) return;
  alignas(64) float spilled[S][Lanes::WIDTH];
  for (int s = 0; s < S; ++s) logits[s].store(spilled[s]);
  for (int lane = 0; lane < Lanes::WIDTH; ++lane) {
    spilled[before[grid.offsets[first + lane]]][lane] += sampling.identity_bias;
  }
  for (int s = 0; s < S; ++s) logits[s] = Lanes::load(spilled[s]);
}

template <int S>
static void step_states(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise,
                        uint32_t step, const uint8_t* before, uint8_t* after) {
  for (int first = 0; first < grid.cells; first += Lanes::WIDTH) {
    alignas(64) Features features[Lanes::WIDTH];
    for (int lane = 0; lane < Lanes::WIDTH; ++lane) {
      features[lane] = cell_features(rule, before + grid.offsets[first + lane], grid.stride);
    }
    Lanes by_feature[NUM_FEATURES], logits[S], best, second, index;
    Lanes::transpose(features, by_feature);
    cell_logits<Lanes, S>(rule, by_feature, logits);
    add_identity_bias<S>(grid, sampling, before, first, logits);
    cell_best<Lanes, S>(logits, best, second, index);
    finish_tile<S>(grid, sampling, noise, step, first, logits, best, second, index, after);
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
