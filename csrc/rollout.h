// The seam: what a device must offer to make automata data, on one page. Kernels know this header and no Python.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

namespace nca {

enum InitialState : int { INITIAL_SHARED_CATEGORICAL = 0, INITIAL_UNIFORM = 1 };

// The law of a dataset (config/law.py), as numbers.
struct Params {
  int num_states;
  int height;
  int width;
  int patch;
  int burn_in_steps;
  int steps_per_frame;
  int num_frames;        // of an emitted sequence
  float temperature;
  float identity_bias;
  int initial_state;     // InitialState
  bool wrap_channels;
  int score_frames;
  int score_token_bytes;  // 1, 2 or 4, little-endian
  bool score_delimiters;
  bool emit_scored;  // the first sequence of a rule is the rollout that was scored, gone on

  int cells() const { return height * width; }
  int channels() const { return wrap_channels ? num_states + 2 : num_states; }
  int patches() const { return (height / patch) * (width / patch); }
  uint32_t start_token() const {  // the token after those of all patches; the end token follows
    uint32_t token = 1;
    for (int i = 0; i < patch * patch; ++i) token *= static_cast<uint32_t>(num_states);
    return token;
  }
  int document_tokens() const { return num_frames * (patches() + 2); }
  int score_bytes() const { return score_frames * (patches() + (score_delimiters ? 2 : 0)) * score_token_bytes; }
};

// Weights of a batch of rules in the layout of the released code's convolutions (all float32, C-contiguous):
// conv0 (N, 3, 3, C, 4), conv1 (N, 4, 16), conv2 (N, 16, S) and biases (N, 4), (N, 16), (N, S).
struct Weights {
  const float* conv0;
  const float* conv0_bias;
  const float* conv1;
  const float* conv1_bias;
  const float* conv2;
  const float* conv2_bias;
};

// How the work is done, without influence on the result.
struct Execution {
  int threads;
  std::string kernel;  // one of kernel_names(), or "" for the fastest
};

std::vector<std::string> kernel_names();

// Kernels of `count` candidates: conv0 (count, 3, 3, channels, 4), conv1 (count, 4, 16), conv2 (count, 16, S).
// Biases are 0.
void draw_rules(const Params&, uint64_t seed, const uint32_t* candidates, size_t count, float* conv0, float* conv1,
                float* conv2, const Execution&);

// states (count, num_steps + 1, H, W) from start (count, H, W); row n draws as candidate n.
void rollout(const Params&, const Weights&, const uint8_t* start, size_t count, int num_steps, uint64_t seed,
             uint8_t* states, const Execution&);

// Bytes that gzip makes of the scored frames of candidates first .. first + count - 1.
void score(const Params&, uint64_t seed, uint32_t first, size_t count, int32_t* gzip_bytes, const Execution&);

// Whether low < gzip bytes < high, of the same candidates: 1 or 0. Sooner than the sizes, and never another answer.
void accept(const Params&, uint64_t seed, uint32_t first, size_t count, int64_t low, int64_t high, uint8_t* accepted,
            const Execution&);

// Whether the scores of a law are found by deflate_fast.h; else zlib makes them.
bool covers(const Params&);

// Tokens (count, document_tokens) of the given accepted candidates, each with its repeat number.
void documents(const Params&, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               uint16_t* tokens, const Execution&);
void documents(const Params&, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               int32_t* tokens, const Execution&);

// gzip sizes of `count` buffers of `length` bytes each.
void gzip_sizes(const uint8_t* buffers, size_t count, size_t length, int64_t* sizes, const Execution&);

// The same of `count` streams of `length` <= 1,024 tokens as int32, by deflate_fast.h alone; -1 where it does not know.
void token_gzip_sizes(const uint16_t* tokens, size_t count, int length, int32_t* sizes, const Execution&);
void accept_tokens(const uint16_t* tokens, size_t count, int length, int64_t low, int64_t high, int8_t* accepted,
                   const Execution&);

}  // namespace nca
