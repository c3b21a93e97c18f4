// The automaton of one thread on CPUs.
#include "runner.h"

#include <algorithm>

#include "rule.h"

namespace nca {

Runner::Runner(const Params& params, const Kernel& kernel)
    : params_(params), kernel_(kernel), states_(static_cast<size_t>(params.cells() + SLACK)),
      bordered_(static_cast<size_t>(params.height * (params.width + 2) + SLACK)),
      rows_(static_cast<size_t>((params.height + 2) * params.width + SLACK)),
      grid_{params.num_states, params.height, params.width, bordered_.data(), rows_.data()},
      sampling_{1.0f / params.temperature, LOGIT_WINDOW * params.temperature, params.identity_bias} {
  const RuleShape shape(params);
  conv0_.resize(static_cast<size_t>(shape.conv0));
  conv1_.resize(static_cast<size_t>(shape.conv1));
  conv2_.resize(static_cast<size_t>(shape.conv2));
}

void Runner::use_rule(const Weights& weights, size_t n) { prepare_rule(params_, weights, n, rule_); }

void Runner::use_candidate(uint64_t seed, uint32_t candidate) {
  static const float zeros[NUM_HIDDEN + MAX_STATES] = {};
  draw_rule(params_, kernel_, seed, candidate, scratch_, conv0_.data(), conv1_.data(), conv2_.data());
  use_rule(Weights{conv0_.data(), zeros, conv1_.data(), zeros, conv2_.data(), zeros}, 0);
}

void Runner::start_at(const uint8_t* states) {
  std::copy_n(states, params_.cells(), states_.begin());
  begin();
}

void Runner::start_at_random(const Stream& stream) {
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
      states_[static_cast<size_t>(first + k)] = static_cast<uint8_t>(state);
    }
  }
  begin();
}

void Runner::advance(int steps, const Stream& noise) {
  for (int i = 0; i < steps && !settled_; ++i) {
    settled_ = kernel_.step(grid_, rule_, sampling_, noise, steps_done_++, states_.data());
  }
}

void Runner::shared_categorical(const Stream& stream, float* cumulative, float& total) const {
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

}  // namespace nca
