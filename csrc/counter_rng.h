// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Bits are a pure function of (seed, candidate, purpose, repeat, step, index), so nothing depends on the order in which
// threads, processes or devices do the work.
#pragma once

#include <stdint.h>

#include "host_device.h"

namespace nca {

// What bits are for. Fixed for ever: changing a number changes every dataset.
enum Purpose : uint32_t {
  PURPOSE_RULE = 0,           // the weights of a candidate
  PURPOSE_SCORE_START = 1,    // initial state of the rollout that is scored
  PURPOSE_SCORE_NOISE = 2,    // its sampling
  PURPOSE_EMIT_START = 3,     // initial state of an emitted sequence (keyed by the repeat too)
  PURPOSE_EMIT_NOISE = 4,     // its sampling
  PURPOSE_GIVEN_NOISE = 5,    // sampling of a rollout over explicit weights; the candidate is the row of the batch
};

struct Bits {
  uint32_t word[4];
};

NCA_FN Bits philox(Bits counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = static_cast<uint64_t>(0xD2511F53u) * counter.word[0];
    const uint64_t right = static_cast<uint64_t>(0xCD9E8D57u) * counter.word[2];
    counter = {{static_cast<uint32_t>(right >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(right),
                static_cast<uint32_t>(left >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(left)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// All draws of one candidate for one purpose.
struct Stream {
  uint64_t seed;
  uint32_t candidate;
  uint32_t purpose;
  uint32_t repeat;
};

// `index` < 2^24 counts draws of four words within a step; `step` counts updates of the automaton.
NCA_FN Bits bits_at(const Stream& stream, uint32_t step, uint32_t index) {
  const Bits counter = {{index | stream.purpose << 24, step, stream.candidate, stream.repeat}};
  return philox(counter, static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32));
}

// Uniform in [0, 1) on multiples of 2^-24.
NCA_FN float unit_uniform(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// Uniform in (-1, 1), symmetric, on odd multiples of 2^-23: never 0, never an end.
NCA_FN float symmetric_uniform(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>((bits >> 9) * 2 + 1) - (1 << 23)) * 0x1p-23f;
}

}  // namespace nca
