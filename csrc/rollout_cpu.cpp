// The seam on CPUs: candidates are dealt to threads, each runs the kernel of the processor.
#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "deflate_fast.h"
#include "deflate_size.h"
#include "rollout.h"
#include "rollout_kernel.h"
#include "rule.h"
#include "runner.h"

namespace nca {

namespace {

std::vector<const Kernel*> available_kernels() {
  std::vector<const Kernel*> kernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma")) {
    if (__builtin_cpu_supports("avx512vnni")) kernels.push_back(&avx512_vnni_kernel);
    kernels.push_back(&avx512_kernel);
  }
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

template <class Token>
void write_documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats,
                     size_t count, Token* tokens, const Execution& execution) {
  const Kernel& kernel = find_kernel(execution.kernel);
  const size_t length = static_cast<size_t>(params.document_tokens());
  deal<Runner>(count, execution.threads, [&] { return Runner(params, kernel); }, [&](Runner& runner, size_t i) {
    const bool scored = params.emit_scored && repeats[i] == 0;
    const Stream start{seed, candidates[i], scored ? PURPOSE_SCORE_START : PURPOSE_EMIT_START, repeats[i]};
    const Stream noise{seed, candidates[i], scored ? PURPOSE_SCORE_NOISE : PURPOSE_EMIT_NOISE, repeats[i]};
    Token* out = tokens + i * length;
    runner.use_candidate(seed, candidates[i]);
    runner.start_at_random(start);
    for (int frame = 0; frame < params.num_frames; ++frame) {
      runner.advance(frame == 0 ? params.burn_in_steps : params.steps_per_frame, noise);
      out = runner.put_tokens(true, out);
    }
  });
}

// Rolls candidates out and weighs their frames; plain zlib where DeflateFast does not cover the law or the stream.
class Scorer {
 public:
  Scorer(const Params& params, const Kernel& kernel)
      : params_(params), covered_(DeflateFast::covers(params)), runner_(params, kernel),
        bytes_(static_cast<size_t>(params.score_bytes())), tokens_(covered_ ? bytes_.size() / 4 : 0),
        frame_(static_cast<size_t>(params.patches() + 2)) {}

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
    uint16_t* word = tokens_.data();
    uint8_t* byte = bytes_.data();
    runner_.use_candidate(seed, candidate);
    runner_.start_at_random(Stream{seed, candidate, PURPOSE_SCORE_START, 0});
    for (int frame = 0; frame < params_.score_frames; ++frame) {
      runner_.advance(frame == 0 ? params_.burn_in_steps : params_.steps_per_frame, noise);
      if (covered_) {
        word = runner_.put_tokens(params_.score_delimiters, word);
        continue;
      }
      const uint32_t* end = runner_.put_tokens(params_.score_delimiters, frame_.data());
      for (const uint32_t* token = frame_.data(); token != end; ++token) {
        for (int b = 0; b < params_.score_token_bytes; ++b) *byte++ = static_cast<uint8_t>(*token >> 8 * b);
      }
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
  std::vector<uint32_t> frame_;
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
  deal<RuleDraw>(count, execution.threads, [&] { return RuleDraw(params, kernel); }, [&](RuleDraw& draw, size_t i) {
    const Weights weights = draw.weights(seed, candidates[i]);
    std::copy_n(weights.conv0, shape.conv0, conv0 + i * shape.conv0);
    std::copy_n(weights.conv1, shape.conv1, conv1 + i * shape.conv1);
    std::copy_n(weights.conv2, shape.conv2, conv2 + i * shape.conv2);
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
      std::copy_n(runner.states(), cells, out += cells);
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
