// Everything one thread needs to run rules of one law: it takes a rule, starts and runs it, hands out bytes or tokens.
#pragma once

#include <stdint.h>

#include <vector>

#include "rollout.h"
#include "rollout_kernel.h"

namespace nca {

class Runner {
 public:
  Runner(const Params& params, const Kernel& kernel);

  void use_rule(const Weights& weights, size_t n);
  void use_candidate(uint64_t seed, uint32_t candidate);

  void start_at(const uint8_t* states);
  // The initial state: draws 0 .. cells-1 are the cells' words (four a draw), the shared logits follow.
  void start_at_random(const Stream& stream);

  void advance(int steps, const Stream& noise);

  const uint8_t* states() const { return states_.data(); }

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
                    states_[static_cast<size_t>((row + y) * params_.width + column + x)];
          }
        }
        store(token);
      }
    }
    if (delimiters) store(start + 1);
  }

 private:
  void shared_categorical(const Stream& stream, float* cumulative, float& total) const;
  void begin() {
    steps_done_ = 0;
    settled_ = false;
  }

  const Params params_;
  const Kernel& kernel_;
  std::vector<uint8_t> states_, bordered_;
  std::vector<uint16_t> rows_;
  std::vector<float> conv0_, conv1_, conv2_, scratch_;
  const Grid grid_;
  const Sampling sampling_;
  RuleTables rule_;
  uint32_t steps_done_ = 0;
  bool settled_ = false;  // no further update changes a state
};

}  // namespace nca
