// The automaton of one thread on CPUs.
#include "runner.h"

#include <algorithm>

#include "rule.h"

namespace nca {

Runner::Runner(const Params& params, const Kernel& kernel)
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

void Runner::use_rule(const Weights& weights, size_t n) { prepare_rule(params_, weights, n, rule_); }

void Runner::use_candidate(uint64_t seed, uint32_t candidate) {
  static const float zeros[NUM_HIDDEN + MAX_STATES] = {};
  draw_rule(params_, kernel_, seed, candidate, scratch_, conv0_.data(), conv1_.data(), conv2_.data());
  use_rule(Weights{conv0_.data(), zeros, conv1_.data(), zeros, conv2_.data(), zeros}, 0);
}

void Runner::start_at(const uint8_t* states) {
  for (int cell = 0; cell < params_.cells(); ++cell) place(cell) = states[cell];
  fill_border();
  steps_done_ = 0;
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
      place(first + k) = static_cast<uint8_t>(state);
    }
  }
  fill_border();
  steps_done_ = 0;
}

void Runner::advance(int steps, const Stream& noise) {
  const Grid grid{params_.num_states, params_.height,  params_.width,          params_.cells(),
                  stride_,            offsets_.data(), scratch_states_.data(), rows_.data()};
  for (int i = 0; i < steps; ++i) {
    kernel_.step(grid, rule_, sampling_, noise, steps_done_++, now_.data(), next_.data());
    now_.swap(next_);
    fill_border();
  }
}

void Runner::copy_states(uint8_t* states) const {
  for (int row = 0; row < params_.height; ++row) {
    std::copy_n(&now_[static_cast<size_t>((row + 1) * stride_ + 1)], params_.width, states + row * params_.width);
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

void Runner::fill_border() {
  const int height = params_.height, width = params_.width;
  for (int row = 1; row <= height; ++row) {
    uint8_t* cells = &now_[static_cast<size_t>(row * stride_)];
    cells[0] = cells[width];
    cells[width + 1] = cells[1];
  }
  std::copy_n(&now_[static_cast<size_t>(height * stride_)], stride_, now_.data());
  std::copy_n(&now_[static_cast<size_t>(stride_)], stride_, &now_[static_cast<size_t>((height + 1) * stride_)]);
}

}  // namespace nca
