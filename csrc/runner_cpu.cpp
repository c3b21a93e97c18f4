// The automaton of one thread on CPUs.
#include "runner.h"

#include <algorithm>

namespace nca {

Runner::Runner(const Params& params, const Kernel& kernel)
    : params_(params), kernel_(kernel), num_patches_(params.patches()), start_token_(params.start_token()),
      states_(static_cast<size_t>(params.cells() + SLACK)),
      bordered_(static_cast<size_t>((params.height + 2) * params.width + 4 * SLACK)),
      at_left_(static_cast<size_t>((params.height + 2) * params.width + SLACK)), at_right_(at_left_.size()),
      rows_(at_left_.size()), words_(static_cast<size_t>(params.cells() + MAX_STATES + 2 * SLACK)),
      tokens_(static_cast<size_t>(params.patches() + SLACK)),
      grid_{params.num_states, params.height, params.width, bordered_.data() + SLACK, at_left_.data(),
            at_right_.data(), rows_.data()},
      sampling_{1.0f / params.temperature, LOGIT_WINDOW * params.temperature, params.identity_bias},
      draw_(params, kernel) {
  for (int y = 0; y < params.height + 2; ++y) {
    const size_t first = static_cast<size_t>(y * params.width);
    at_left_[first] = at_right_[first + static_cast<size_t>(params.width) - 1] = 0xFF;
  }
}

void Runner::use_rule(const Weights& weights, size_t n) { prepare_rule(params_, kernel_, weights, n, rule_); }

void Runner::use_candidate(uint64_t seed, uint32_t candidate) { use_rule(draw_.weights(seed, candidate), 0); }

void Runner::start_at(const uint8_t* states) {
  std::copy_n(states, params_.cells(), states_.data());
  begin();
}

void Runner::start_at_random(const Stream& stream) {
  const int cells = params_.cells(), states = params_.num_states;
  const int first_logit = (cells + 3) / 4 * 4;
  const uint32_t* words = words_.data();
  kernel_.words(stream, first_logit + states, words_.data());
  if (params_.initial_state == INITIAL_UNIFORM) {
    for (int cell = 0; cell < cells; ++cell) {
      const uint64_t scaled = static_cast<uint64_t>(words[cell]) * static_cast<uint32_t>(states);
      states_[static_cast<size_t>(cell)] = static_cast<uint8_t>(scaled >> 32);
    }
  } else {
    kernel_.categorical(words, cells, words + first_logit, states, states_.data());
  }
  begin();
}

void Runner::advance(int steps, const Stream& noise) {
  for (int i = 0; i < steps && !settled_; ++i) {
    settled_ = kernel_.step(grid_, rule_, sampling_, noise, steps_done_++, states_.data());
  }
}

}  // namespace nca
