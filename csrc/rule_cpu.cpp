// Drawing and preparing rules on CPUs.
#include "rule.h"

#include <string.h>

#include <cmath>

namespace nca {

namespace {

// Standard deviation before truncation that gives variance 1 / fan_in after it (lecun_normal of flax and jax).
float lecun_deviation(int fan_in) {
  return static_cast<float>(std::sqrt(1.0 / fan_in) / 0.87962566103423978);
}

}  // namespace

RuleDraw::RuleDraw(const Params& params, const Kernel& kernel)
    : shape_(params), kernel_(kernel),
      deviations_{lecun_deviation(9 * params.channels()), lecun_deviation(NUM_FEATURES), lecun_deviation(NUM_HIDDEN)},
      words_(static_cast<size_t>(shape_.total() + SLACK)), values_(static_cast<size_t>(shape_.total())) {}

Weights RuleDraw::weights(uint64_t seed, uint32_t candidate) {
  static const float zeros[NUM_HIDDEN + MAX_STATES] = {};
  kernel_.words(Stream{seed, candidate, PURPOSE_RULE, 0}, shape_.total(), words_.data());
  kernel_.truncated_normals(words_.data(), shape_.total(), values_.data());
  float *conv0 = values_.data(), *conv1 = conv0 + shape_.conv0, *conv2 = conv1 + shape_.conv1;
  for (int i = 0; i < shape_.conv0; ++i) conv0[i] *= deviations_[0];
  for (int i = 0; i < shape_.conv1; ++i) conv1[i] *= deviations_[1];
  for (int i = 0; i < shape_.conv2; ++i) conv2[i] *= deviations_[2];
  return {conv0, zeros, conv1, zeros, conv2, zeros};
}

// Folds a one-hot convolution into table rows. With channels padded by wrap, state s lights channel s + 1 of S + 2;
// channel 0 repeats state S - 1 and channel S + 1 repeats state 0.
void prepare_rule(const Params& params, const Kernel& kernel, const Weights& weights, size_t n, RuleTables& rule) {
  const int states = params.num_states, channels = params.channels();
  const size_t row = static_cast<size_t>(states) * sizeof(Features);
  const float* conv0 = weights.conv0 + n * 9 * channels * NUM_FEATURES;
  for (int neighbour = 0; neighbour < NUM_NEIGHBOURS; ++neighbour, conv0 += channels * NUM_FEATURES) {
    Features* table = rule.table[neighbour];
    memcpy(table, conv0 + (params.wrap_channels ? NUM_FEATURES : 0), row);
    if (!params.wrap_channels) continue;
    for (int k = 0; k < NUM_FEATURES; ++k) {
      table[0].value[k] += conv0[(states + 1) * NUM_FEATURES + k];
      table[states - 1].value[k] += conv0[k];
    }
  }
  memcpy(rule.feature_bias.value, weights.conv0_bias + n * NUM_FEATURES, sizeof rule.feature_bias.value);
  memcpy(rule.hidden_bias, weights.conv1_bias + n * NUM_HIDDEN, sizeof rule.hidden_bias);
  memcpy(rule.logit_bias, weights.conv2_bias + n * states, static_cast<size_t>(states) * sizeof(float));
  const float *conv1 = weights.conv1 + n * NUM_FEATURES * NUM_HIDDEN, *conv2 = weights.conv2 + n * NUM_HIDDEN * states;
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    for (int k = 0; k < NUM_FEATURES; ++k) rule.hidden_weight[j][k] = conv1[k * NUM_HIDDEN + j];
    memcpy(rule.logit_weight[j], conv2 + j * states, static_cast<size_t>(states) * sizeof(float));
  }
  kernel.fill_tables(states, rule);
}

}  // namespace nca
