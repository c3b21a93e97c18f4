// What kernels are told. Plain numbers and device pointers; read by g++ and nvcc.
#pragma once

#include <stdint.h>

#include <vector>

#include "../nca_cell.h"
#include "../rollout.h"

namespace nca {
namespace cuda {

// The law as a kernel needs it (Params), with what follows from it.
struct Law {
  int num_states, height, width, patch;
  int cells, stride;  // of a row of the bordered grid
  int channels;
  int patches;        // of a frame
  int burn_in_steps, steps_per_frame;
  int initial_state;
  bool wrap_channels;
  uint32_t start_token;
  float deviation[3];  // of conv0, conv1, conv2
  Sampling sampling;

#if defined(__CUDACC__)
  __host__ __device__
#endif
  int places() const {
    return (height + 2) * stride;
  }
};

Law law_of(const Params&);

// `count` rollouts, cut into tokens.
struct Rollouts {
  Law law;
  uint64_t seed;
  uint32_t count;
  uint32_t first;              // candidate of the first, if no list is given
  const uint32_t* candidates;  // null, or (count) on the device
  const uint32_t* repeats;     // null for 0, or (count)
  uint32_t start_purpose, noise_purpose;
  int frames;
  bool delimiters;
  bool wide;                   // tokens are int32, not uint16
  void* tokens;                // (count, frames x (patches, and 2 with delimiters)) on the device

  size_t tokens_each() const { return static_cast<size_t>(frames) * static_cast<size_t>(law.patches + 2 * delimiters); }
  size_t bytes_each() const { return tokens_each() * (wide ? 4 : 2); }
};

// Whether low < gzip bytes < high, of `count` streams of `length` tokens.
struct Filter {
  const uint16_t* tokens;  // (count, length) on the device
  uint32_t count;
  int length;              // at most 1,024
  int low, high;
  const uint32_t* times_log;  // (MOST_SYMBOLS) on the device
  int8_t* verdict;         // (count) on the device: 1 or 0, UNDECIDED where the device does not know
};

constexpr int8_t UNDECIDED = -1;
constexpr int NUM_LITERAL_SYMBOLS = 286, NUM_SYMBOLS = NUM_LITERAL_SYMBOLS + 30;
constexpr int MOST_SYMBOLS = 4 * 1024 + 2;  // of a stream
constexpr int ENTROPY_SCALE = 1 << 12;

// n log2 n of n < MOST_SYMBOLS in units of 1 / ENTROPY_SCALE, rounded up by 1 to 2 units.
std::vector<uint32_t> times_log_table();

// Of shared memory, for a warp (filter.cuh).
constexpr size_t filter_bytes(int length) { return 4 * static_cast<size_t>(length + 2 + NUM_SYMBOLS); }

constexpr int WARP = 32;

// A kernel is compiled for these numbers of states; a law takes the next greater one.
constexpr int COMPILED_STATES[] = {2, 4, 8, 10, 12, 16};

// Cells that a lane updates together: each weight is loaded once for all of them, and their sums stay in registers.
constexpr int cells_of_lane(int states) { return states <= 10 ? 9 : states <= 12 ? 7 : 5; }

// Floats of a rule in shared memory, and bytes of all that a team keeps there (rollout.cuh).
constexpr int rule_floats(int states) {
  return NUM_FEATURES * (NUM_NEIGHBOURS * (states + 2) + NUM_HIDDEN + NUM_HIDDEN * ((states + 3) / 4));
}
constexpr size_t team_bytes(int states, int cells, int places) {
  const int bytes = 4 * (rule_floats(states) + 2 * MAX_STATES + 1) + 2 * 2 * cells + 2 * places;
  return static_cast<size_t>(bytes + 15) / 16 * 16;
}

// How a law is laid on warps.
struct Shape {
  int states;         // of COMPILED_STATES
  int team_size;      // threads of a warp that share a candidate, so that as few as possible of them have no cell
  size_t team_bytes;  // of shared memory
};

Shape shape_of(const Law&);

}  // namespace cuda
}  // namespace nca
