// The seam on CPUs: candidates are dealt to threads, each runs the kernel of the processor.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "deflate_fast.h"
#include "deflate_size.h"
#include "rollout.h"
#include "rollout_kernel.h"

namespace nca {

namespace {

std::vector<const Kernel*> available_kernels() {
  std::vector<const Kernel*> kernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) kernels.push_back(&avx2_kernel);
#endif
  kernels.push_back(&portable_kernel);
  return kernels;
}

const Kernel& find_kernel(const std::string& name) {
  for (const Kernel* kernel : available_kernels()) {
    if (name.empty() || name == kernel->name) return *kernel;
  }
  throw std::invalid_argument("kernel '" + name + "' is not available on this processor");
}

// body(worker-local object, index) for every index; the objects are made inside their threads.
template <class Worker, class Make, class Body>
void deal(size_t count, int threads, Make make, Body body) {
  constexpr size_t CHUNK = 8;
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto work = [&] {
    try {
      Worker worker = make();
      for (size_t first; (first = next.fetch_add(CHUNK)) < count;) {
        for (size_t i = first; i < std::min(first + CHUNK, count); ++i) body(worker, i);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failure_lock);
      failure = std::current_exception();
      next = count;
    }
  };
  const size_t useful = std::min<size_t>(std::max(threads, 1), (count + CHUNK - 1) / CHUNK);
  std::vector<std::thread> others;
  for (size_t t = 1; t < useful; ++t) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

// Standard deviation before truncation that gives variance 1 / fan_in after it (lecun_normal of flax and jax).
float lecun_deviation(int fan_in) {
  return static_cast<float>(std::sqrt(1.0 / fan_in) / 0.87962566103423978);
}

struct RuleShape {
  int conv0, conv1, conv2;
  explicit RuleShape(const Params& p)
      : conv0(9 * p.channels() * NUM_FEATURES), conv1(NUM_FEATURES * NUM_HIDDEN), conv2(NUM_HIDDEN * p.num_states) {}
};

void draw_rule(const Params& params, const Kernel& kernel, uint64_t seed, uint32_t candidate,
               std::vector<float>& scratch, float* conv0, float* conv1, float* conv2) {
  const RuleShape shape(params);
  const int total = shape.conv0 + shape.conv1 + shape.conv2;
  scratch.resize(static_cast<size_t>(total));
  kernel.truncated_normals(Stream{seed, candidate, PURPOSE_RULE, 0}, total, scratch.data());
  const float* value = scratch.data();
  const auto scale = [&](float* out, int count, int fan_in) {
    const float deviation = lecun_deviation(fan_in);
    for (int i = 0; i < count; ++i) out[i] = *value++ * deviation;
  };
  scale(conv0, shape.conv0, 9 * params.channels());
  scale(conv1, shape.conv1, NUM_FEATURES);
  scale(conv2, shape.conv2, NUM_HIDDEN);
}

// The sums of RuleTables::row_table, in the order that every kernel and the reference keep: (left + centre) + right.
void fill_row_tables(int states, RuleTables& rule) {
  typedef float Four __attribute__((vector_size(16)));
  const auto at = [](Features& features) -> Four& { return *reinterpret_cast<Four*>(features.value); };
  for (int row = 0; row < NUM_ROWS; ++row) {
    Features *left = rule.table[3 * row], *centre = rule.table[3 * row + 1], *right = rule.table[3 * row + 2];
    Features* out = rule.row_table[row];
    for (int l = 0; l < states; ++l) {
      for (int c = 0; c < states; ++c) {
        const Four sum = at(left[l]) + at(centre[c]);
        for (int r = 0; r < states; ++r) at(*out++) = sum + at(right[r]);
      }
    }
  }
}

// Folds a one-hot convolution into table rows. With channels padded by wrap, state s lights channel s + 1 of S + 2;
// channel 0 repeats state S - 1 and channel S + 1 repeats state 0.
void prepare_rule(const Params& params, const Weights& weights, size_t n, RuleTables& rule) {
  const int states = params.num_states, channels = params.channels();
  const float* conv0 = weights.conv0 + n * 9 * channels * NUM_FEATURES;
  for (int neighbour = 0; neighbour < NUM_NEIGHBOURS; ++neighbour) {
    for (int s = 0; s < states; ++s) {
      for (int k = 0; k < NUM_FEATURES; ++k) {
        const auto at = [&](int channel) { return conv0[(neighbour * channels + channel) * NUM_FEATURES + k]; };
        float value = at(params.wrap_channels ? s + 1 : s);
        if (params.wrap_channels && s == 0) value += at(states + 1);
        if (params.wrap_channels && s == states - 1) value += at(0);
        rule.table[neighbour][s].value[k] = value;
      }
    }
  }
  fill_row_tables(states, rule);
  for (int k = 0; k < NUM_FEATURES; ++k) rule.feature_bias.value[k] = weights.conv0_bias[n * NUM_FEATURES + k];
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    rule.hidden_bias[j] = weights.conv1_bias[n * NUM_HIDDEN + j];
    for (int k = 0; k < NUM_FEATURES; ++k) {
      rule.hidden_weight[j][k] = weights.conv1[(n * NUM_FEATURES + k) * NUM_HIDDEN + j];
    }
    for (int s = 0; s < states; ++s) rule.logit_weight[j][s] = weights.conv2[(n * NUM_HIDDEN + j) * states + s];
  }
  for (int s = 0; s < states; ++s) rule.logit_bias[s] = weights.conv2_bias[n * states + s];
}

// Everything one thread needs to run rules of one law.
class Runner {
 public:
  Runner(const Params& params, const Kernel& kernel)
      : params_(params), kernel_(kernel), stride_(params.width + 2),
        now_(static_cast<size_t>((params.height + 2) * stride_)), next_(now_.size()),
        sampling_{1.0f / params.temperature, LOGIT_WINDOW * params.temperature, params.identity_bias} {
    for (int cell = 0; cell < params.cells(); ++cell) {
      offsets_.push_back((cell / params.width + 1) * stride_ + cell % params.width + 1);
    }
    while (offsets_.size() % 64) offsets_.push_back(offsets_.back());
    scratch_states_.resize(offsets_.size());
    rows_.resize(now_.size());
    const RuleShape shape(params);
    conv0_.resize(static_cast<size_t>(shape.conv0));
    conv1_.resize(static_cast<size_t>(shape.conv1));
    conv2_.resize(static_cast<size_t>(shape.conv2));
  }

  void use_rule(const Weights& weights, size_t n) { prepare_rule(params_, weights, n, rule_); }

  void use_candidate(uint64_t seed, uint32_t candidate) {
    static const float zeros[NUM_HIDDEN + MAX_STATES] = {};
    draw_rule(params_, kernel_, seed, candidate, scratch_, conv0_.data(), conv1_.data(), conv2_.data());
    use_rule(Weights{conv0_.data(), zeros, conv1_.data(), zeros, conv2_.data(), zeros}, 0);
  }

  void start_at(const uint8_t* states) {
    for (int cell = 0; cell < params_.cells(); ++cell) place(cell) = states[cell];
    fill_border();
    steps_done_ = 0;
  }

  // The initial state: draws 0 .. cells-1 are the cells' words (four a draw), the shared logits follow.
  void start_at_random(const Stream& stream) {
    const int cells = params_.cells(), states = params_.num_states;
    float cumulative[MAX_STATES];
    float total = 0.0f;
    if (params_.initial_state == INITIAL_SHARED_CATEGORICAL) shared_categorical(stream, cumulative, total);
    for (int first = 0; first < cells; first += 4) {
      const Bits bits = bits_at(stream, 0, static_cast<uint32_t>(first / 4));
      for (int k = 0; k < 4 && first + k < cells; ++k) {
        uint32_t state = 0;
        if (params_.initial_state == INITIAL_UNIFORM) {
          state = static_cast<uint32_t>(static_cast<uint64_t>(bits.word[k]) * static_cast<uint32_t>(states) >> 32);
        } else {
          const float target = unit_uniform(bits.word[k]) * total;
          for (int s = 0; s + 1 < states; ++s) state += cumulative[s] <= target;
        }
        place(first + k) = static_cast<uint8_t>(state);
      }
    }
    fill_border();
    steps_done_ = 0;
  }

  void advance(int steps, const Stream& noise) {
    const Grid grid{params_.num_states, params_.height, params_.width, params_.cells(), stride_, offsets_.data(), scratch_states_.data(), rows_.data()};
    for (int i = 0; i < steps; ++i) {
      kernel_.step(grid, rule_, sampling_, noise, steps_done_++, now_.data(), next_.data());
      now_.swap(next_);
      fill_border();
    }
  }

  void copy_states(uint8_t* states) const {
    for (int row = 0; row < params_.height; ++row) {
      std::copy_n(&now_[static_cast<size_t>((row + 1) * stride_ + 1)], params_.width, states + row * params_.width);
    }
  }

  // Patches row-major; the first cell of a patch is the least significant digit (released code utils/tokenizers.py).
  template <class Store>
  void put_tokens(bool delimiters, Store store) const {
    const int patch = params_.patch;
    uint32_t start = 1;
    for (int i = 0; i < patch * patch; ++i) start *= static_cast<uint32_t>(params_.num_states);
    if (delimiters) store(start);
    for (int row = 0; row < params_.height; row += patch) {
      for (int column = 0; column < params_.width; column += patch) {
        uint32_t token = 0;
        for (int y = patch - 1; y >= 0; --y) {
          for (int x = patch - 1; x >= 0; --x) {
            token = token * static_cast<uint32_t>(params_.num_states) +
                    now_[static_cast<size_t>((row + y + 1) * stride_ + column + x + 1)];
          }
        }
        store(token);
      }
    }
    if (delimiters) store(start + 1);
  }

 private:
  uint8_t& place(int cell) { return now_[static_cast<size_t>(offsets_[static_cast<size_t>(cell)])]; }

  void shared_categorical(const Stream& stream, float* cumulative, float& total) const {
    float logits[MAX_STATES];
    float best = -3.0e38f;
    const uint32_t first = static_cast<uint32_t>((params_.cells() + 3) / 4);
    for (int s = 0; s < params_.num_states; ++s) {
      const Bits bits = bits_at(stream, 0, first + static_cast<uint32_t>(s / 4));
      logits[s] = standard_normal(symmetric_uniform(bits.word[s % 4]));
      best = std::max(best, logits[s]);
    }
    for (int s = 0; s < params_.num_states; ++s) cumulative[s] = total += exp32(logits[s] - best);
  }

  void fill_border() {
    const int height = params_.height, width = params_.width;
    for (int row = 1; row <= height; ++row) {
      uint8_t* cells = &now_[static_cast<size_t>(row * stride_)];
      cells[0] = cells[width];
      cells[width + 1] = cells[1];
    }
    std::copy_n(&now_[static_cast<size_t>(height * stride_)], stride_, now_.data());
    std::copy_n(&now_[static_cast<size_t>(stride_)], stride_, &now_[static_cast<size_t>((height + 1) * stride_)]);
  }

  const Params params_;
  const Kernel& kernel_;
  const int stride_;
  std::vector<uint8_t> now_, next_, scratch_states_;
  std::vector<uint16_t> rows_;
  std::vector<int32_t> offsets_;
  std::vector<float> conv0_, conv1_, conv2_, scratch_;
  const Sampling sampling_;
  RuleTables rule_;
  uint32_t steps_done_ = 0;
};

template <class Token>
void write_documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats,
                     size_t count, Token* tokens, const Execution& execution) {
  const Kernel& kernel = find_kernel(execution.kernel);
  const size_t length = static_cast<size_t>(params.document_tokens());
  deal<Runner>(count, execution.threads, [&] { return Runner(params, kernel); }, [&](Runner& runner, size_t i) {
    const Stream noise{seed, candidates[i], PURPOSE_EMIT_NOISE, repeats[i]};
    Token* out = tokens + i * length;
    runner.use_candidate(seed, candidates[i]);
    runner.start_at_random(Stream{seed, candidates[i], PURPOSE_EMIT_START, repeats[i]});
    for (int frame = 0; frame < params.num_frames; ++frame) {
      runner.advance(frame == 0 ? params.burn_in_steps : params.steps_per_frame, noise);
      runner.put_tokens(true, [&](uint32_t token) { *out++ = static_cast<Token>(token); });
    }
  });
}

// Rolls candidates out and weighs their frames; plain zlib where DeflateFast does not cover the law or the stream.
class Scorer {
 public:
  Scorer(const Params& params, const Kernel& kernel)
      : params_(params), covered_(DeflateFast::covers(params)), runner_(params, kernel),
        bytes_(static_cast<size_t>(params.score_bytes())), tokens_(covered_ ? bytes_.size() / 4 : 0) {}

  int64_t gzip_bytes(uint64_t seed, uint32_t candidate) {
    roll_out(seed, candidate);
    const int size = covered_ ? fast_.gzip_bytes(tokens_.data(), static_cast<int>(tokens_.size())) : fast_.UNKNOWN;
    return size != fast_.UNKNOWN ? size : plain_gzip_bytes();
  }

  bool accepts(uint64_t seed, uint32_t candidate, int64_t low, int64_t high) {
    roll_out(seed, candidate);
    const int count = static_cast<int>(tokens_.size());
    const int known = covered_ ? fast_.accept(tokens_.data(), count, low, high) : fast_.UNKNOWN;
    if (known != fast_.UNKNOWN) return known != 0;
    const int64_t size = plain_gzip_bytes();
    return low < size && size < high;
  }

 private:
  void roll_out(uint64_t seed, uint32_t candidate) {
    const Stream noise{seed, candidate, PURPOSE_SCORE_NOISE, 0};
    uint8_t* byte = bytes_.data();
    uint16_t* word = tokens_.data();
    runner_.use_candidate(seed, candidate);
    runner_.start_at_random(Stream{seed, candidate, PURPOSE_SCORE_START, 0});
    for (int frame = 0; frame < params_.score_frames; ++frame) {
      runner_.advance(frame == 0 ? params_.burn_in_steps : params_.steps_per_frame, noise);
      runner_.put_tokens(params_.score_delimiters, [&](uint32_t token) {
        if (covered_) {
          *word++ = static_cast<uint16_t>(token);
        } else {
          for (int b = 0; b < params_.score_token_bytes; ++b) *byte++ = static_cast<uint8_t>(token >> 8 * b);
        }
      });
    }
  }

  int64_t plain_gzip_bytes() {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      for (int b = 0; b < 4; ++b) bytes_[4 * i + b] = static_cast<uint8_t>(static_cast<uint32_t>(tokens_[i]) >> 8 * b);
    }
    return plain_.gzip_bytes(bytes_.data(), bytes_.size());
  }

  const Params params_;
  const bool covered_;
  Runner runner_;
  DeflateFast fast_;
  DeflateSize plain_;
  std::vector<uint8_t> bytes_;
  std::vector<uint16_t> tokens_;  // of a covered law; then bytes_ waits for a stream that is not
};

}  // namespace

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernel* kernel : available_kernels()) names.emplace_back(kernel->name);
  return names;
}

void draw_rules(const Params& params, uint64_t seed, const uint32_t* candidates, size_t count, float* conv0,
                float* conv1, float* conv2, const Execution& execution) {
  const Kernel& kernel = find_kernel(execution.kernel);
  const RuleShape shape(params);
  using Scratch = std::vector<float>;
  deal<Scratch>(count, execution.threads, [] { return Scratch(); }, [&](Scratch& scratch, size_t i) {
    draw_rule(params, kernel, seed, candidates[i], scratch, conv0 + i * shape.conv0, conv1 + i * shape.conv1,
              conv2 + i * shape.conv2);
  });
}

void rollout(const Params& params, const Weights& weights, const uint8_t* start, size_t count, int num_steps,
             uint64_t seed, uint8_t* states, const Execution& execution) {
  const Kernel& kernel = find_kernel(execution.kernel);
  const size_t cells = static_cast<size_t>(params.cells());
  deal<Runner>(count, execution.threads, [&] { return Runner(params, kernel); }, [&](Runner& runner, size_t i) {
    uint8_t* out = states + i * cells * (static_cast<size_t>(num_steps) + 1);
    runner.use_rule(weights, i);
    runner.start_at(start + i * cells);
    std::copy_n(start + i * cells, cells, out);
    for (int step = 0; step < num_steps; ++step) {
      runner.advance(1, Stream{seed, static_cast<uint32_t>(i), PURPOSE_GIVEN_NOISE, 0});
      runner.copy_states(out += cells);
    }
  });
}

void score(const Params& params, uint64_t seed, uint32_t first, size_t count, int32_t* gzip_bytes,
           const Execution& execution) {
  const Kernel& kernel = find_kernel(execution.kernel);
  deal<Scorer>(count, execution.threads, [&] { return Scorer(params, kernel); }, [&](Scorer& scorer, size_t i) {
    gzip_bytes[i] = static_cast<int32_t>(scorer.gzip_bytes(seed, first + static_cast<uint32_t>(i)));
  });
}

void accept(const Params& params, uint64_t seed, uint32_t first, size_t count, int64_t low, int64_t high,
            uint8_t* accepted, const Execution& execution) {
  const Kernel& kernel = find_kernel(execution.kernel);
  deal<Scorer>(count, execution.threads, [&] { return Scorer(params, kernel); }, [&](Scorer& scorer, size_t i) {
    accepted[i] = scorer.accepts(seed, first + static_cast<uint32_t>(i), low, high);
  });
}

bool covers(const Params& params) { return DeflateFast::covers(params); }

void documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               uint16_t* tokens, const Execution& execution) {
  write_documents(params, seed, candidates, repeats, count, tokens, execution);
}

void documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               int32_t* tokens, const Execution& execution) {
  write_documents(params, seed, candidates, repeats, count, tokens, execution);
}

void gzip_sizes(const uint8_t* buffers, size_t count, size_t length, int64_t* sizes, const Execution& execution) {
  deal<DeflateSize>(count, execution.threads, [] { return DeflateSize(); }, [&](DeflateSize& deflate, size_t i) {
    sizes[i] = deflate.gzip_bytes(buffers + i * length, length);
  });
}

void token_gzip_sizes(const uint16_t* tokens, size_t count, int length, int32_t* sizes, const Execution& execution) {
  deal<DeflateFast>(count, execution.threads, [] { return DeflateFast(); }, [&](DeflateFast& deflate, size_t i) {
    sizes[i] = deflate.gzip_bytes(tokens + i * static_cast<size_t>(length), length);
  });
}

void accept_tokens(const uint16_t* tokens, size_t count, int length, int64_t low, int64_t high, int8_t* accepted,
                   const Execution& execution) {
  deal<DeflateFast>(count, execution.threads, [] { return DeflateFast(); }, [&](DeflateFast& deflate, size_t i) {
    accepted[i] = static_cast<int8_t>(deflate.accept(tokens + i * static_cast<size_t>(length), length, low, high));
  });
}

}  // namespace nca
