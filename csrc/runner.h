// Everything one thread needs to run rules of one law: it takes a rule, starts and runs it, hands out bytes or tokens.
#pragma once

#include <stdint.h>

#include <vector>

#include "rollout.h"
#include "rollout_kernel.h"
#include "rule.h"

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

  // Writes the tokens of the states, between delimiters if asked for, and returns the place after them.
  template <class Token>
  Token* put_tokens(bool delimiters, Token* out) {
    kernel_.tokens(grid_, params_.patch, states(), tokens_.data());
    if (delimiters) *out++ = static_cast<Token>(start_token_);
    for (int i = 0, count = num_patches_; i < count; ++i) *out++ = static_cast<Token>(tokens_[static_cast<size_t>(i)]);
    if (delimiters) *out++ = static_cast<Token>(start_token_ + 1);
    return out;
  }

 private:
  void begin() {
    steps_done_ = 0;
    settled_ = false;
  }

  const Params params_;
  const Kernel& kernel_;
  const int num_patches_;
  const uint32_t start_token_;
  std::vector<uint8_t> states_, bordered_, at_left_, at_right_;
  std::vector<uint16_t> rows_;
  std::vector<uint32_t> words_, tokens_;
  const Grid grid_;
  const Sampling sampling_;
  RuleDraw draw_;
  RuleTables rule_;
  uint32_t steps_done_ = 0;
  bool settled_ = false;  // no further update changes a state
};

}  // namespace nca
