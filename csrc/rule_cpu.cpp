// Drawing and preparing rules on CPUs.
#include "rule.h"

#include <cmath>

namespace nca {

namespace {

// Standard deviation before truncation that gives variance 1 / fan_in after it (lecun_normal of flax and jax).
float lecun_deviation(int fan_in) {
  return static_cast<float>(std::sqrt(1.0 / fan_in) / 0.87962566103423978);
}

// The sums of RuleTables::row_table, in the order that every kernel and the reference keep: (left + centre) + right.
void fill_row_tables(int states, RuleTables& rule) {
  typedef float Four __attribute__((vector_size(16)));
  const auto at = [](Features& features) -> Four& { return *reinterpret_cast<Four*>(features.value); };
  for (int row = 0; row < NUM_ROWS; ++row) {
    Features *left = rule.table[3 * row], *centre = rule.table[3 * row + 1], *right = rule.table[3 * row + 2];
    Features* out = rule.row_table[row];
    for (int l = 0; l < states; ++l) {
      for (int c = 0; c < states; ++c) {
        const Four sum = at(left[l]) + at(centre[c]);
        for (int r = 0; r < states; ++r) at(*out++) = sum + at(right[r]);
      }
    }
  }
}

}  // namespace

void draw_rule(const Params& params, const Kernel& kernel, uint64_t seed, uint32_t candidate,
               std::vector<float>& scratch, float* conv0, float* conv1, float* conv2) {
  const RuleShape shape(params);
  const int total = shape.conv0 + shape.conv1 + shape.conv2;
  scratch.resize(static_cast<size_t>(total));
  kernel.truncated_normals(Stream{seed, candidate, PURPOSE_RULE, 0}, total, scratch.data());
  const float* value = scratch.data();
  const auto scale = [&](float* out, int count, int fan_in) {
    const float deviation = lecun_deviation(fan_in);
    for (int i = 0; i < count; ++i) out[i] = *value++ * deviation;
  };
  scale(conv0, shape.conv0, 9 * params.channels());
  scale(conv1, shape.conv1, NUM_FEATURES);
  scale(conv2, shape.conv2, NUM_HIDDEN);
}

// Folds a one-hot convolution into table rows. With channels padded by wrap, state s lights channel s + 1 of S + 2;
// channel 0 repeats state S - 1 and channel S + 1 repeats state 0.
void prepare_rule(const Params& params, const Weights& weights, size_t n, RuleTables& rule) {
  const int states = params.num_states, channels = params.channels();
  const float* conv0 = weights.conv0 + n * 9 * channels * NUM_FEATURES;
  for (int neighbour = 0; neighbour < NUM_NEIGHBOURS; ++neighbour) {
    for (int s = 0; s < states; ++s) {
      for (int k = 0; k < NUM_FEATURES; ++k) {
        const auto at = [&](int channel) { return conv0[(neighbour * channels + channel) * NUM_FEATURES + k]; };
        float value = at(params.wrap_channels ? s + 1 : s);
        if (params.wrap_channels && s == 0) value += at(states + 1);
        if (params.wrap_channels && s == states - 1) value += at(0);
        rule.table[neighbour][s].value[k] = value;
      }
    }
  }
  fill_row_tables(states, rule);
  for (int k = 0; k < NUM_FEATURES; ++k) rule.feature_bias.value[k] = weights.conv0_bias[n * NUM_FEATURES + k];
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    rule.hidden_bias[j] = weights.conv1_bias[n * NUM_HIDDEN + j];
    for (int k = 0; k < NUM_FEATURES; ++k) {
      rule.hidden_weight[j][k] = weights.conv1[(n * NUM_FEATURES + k) * NUM_HIDDEN + j];
    }
    for (int s = 0; s < states; ++s) rule.logit_weight[j][s] = weights.conv2[(n * NUM_HIDDEN + j) * states + s];
  }
  for (int s = 0; s < states; ++s) rule.logit_bias[s] = weights.conv2_bias[n * states + s];
}

}  // namespace nca
