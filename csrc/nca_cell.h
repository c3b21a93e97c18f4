// The arithmetic of one cell: neighbourhood -> logits -> next state. The only place in C++ where it exists.
//
// `Real` is float, or a vector of cells with the same operators: each lane does exactly what the float does, in the
// same order, so that results are equal to the bit for every width.
//
// The network (paper, section on rules; released code utils/nca.py): 3x3 convolution over one-hot states -> 4 features
// -> 16 hidden, ReLU -> one logit a state. On one-hot input the convolution is a sum of nine rows of a table.
#pragma once

#include <stdint.h>

#include "counter_rng.h"
#include "float_math.h"
#include "host_device.h"

namespace nca {

constexpr int MAX_STATES = 16;
constexpr int NUM_NEIGHBOURS = 9;
constexpr int NUM_FEATURES = 4;
constexpr int NUM_HIDDEN = 16;
constexpr float LOGIT_WINDOW = 17.0f;  // in units of the temperature: e^-17 < 2^-24, below what a uniform can resolve

struct Features {
  float value[NUM_FEATURES];
};

// A rule ready to run. Neighbours are row-major: (-1,-1), (-1,0), ... (1,1).
struct alignas(64) RuleTables {
  Features table[NUM_NEIGHBOURS][MAX_STATES];
  Features feature_bias;
  float hidden_weight[NUM_HIDDEN][NUM_FEATURES];
  float hidden_bias[NUM_HIDDEN];
  float logit_weight[NUM_HIDDEN][MAX_STATES];
  float logit_bias[MAX_STATES];
};

struct Sampling {
  float inverse_temperature;
  float window;  // LOGIT_WINDOW x temperature
  float identity_bias;
};

// Sum of the nine table rows, in order, onto the bias. `cell` points into a grid with a one-cell border, `stride` wide.
NCA_FN Features cell_features(const RuleTables& rule, const uint8_t* cell, int stride) {
  Features sum = rule.feature_bias;
  for (int neighbour = 0; neighbour < NUM_NEIGHBOURS; ++neighbour) {
    const uint8_t state = cell[(neighbour / 3 - 1) * stride + neighbour % 3 - 1];
    const Features& row = rule.table[neighbour][state];
    for (int k = 0; k < NUM_FEATURES; ++k) sum.value[k] += row.value[k];
  }
  return sum;
}

template <class Real, int S>
NCA_FN void cell_logits(const RuleTables& rule, const Real (&features)[NUM_FEATURES], Real (&logits)[S]) {
  for (int s = 0; s < S; ++s) logits[s] = Real::broadcast(rule.logit_bias[s]);
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    Real hidden = Real::broadcast(rule.hidden_bias[j]);
    for (int k = 0; k < NUM_FEATURES; ++k) hidden = fma(features[k], Real::broadcast(rule.hidden_weight[j][k]), hidden);
    hidden = positive_part(hidden);
    for (int s = 0; s < S; ++s) logits[s] = fma(hidden, Real::broadcast(rule.logit_weight[j][s]), logits[s]);
  }
}

// Best logit, its first index and the second best value (equal to the best where it occurs twice).
template <class Real, int S>
NCA_FN void cell_best(const Real (&logits)[S], Real& best, Real& second, Real& index) {
  best = logits[0];
  second = Real::broadcast(-3.0e38f);
  index = Real::broadcast(0.0f);
  for (int s = 1; s < S; ++s) {
    second = larger(second, smaller(best, logits[s]));
    index = select_greater(logits[s], best, Real::broadcast(static_cast<float>(s)), index);
    best = larger(best, logits[s]);
  }
}

// Categorical sample of softmax(logits / T) by inversion, over the logits within the window of the best. The best is
// the outcome without a draw where it is alone there, so only cells with a second one need a call.
NCA_FN uint8_t cell_sample(const float* logits, int stride, int num_states, float best, const Sampling& sampling,
                           uint32_t bits) {
  float cumulative[MAX_STATES];
  float total = 0.0f;
  const float least = best - sampling.window;
  for (int s = 0; s < num_states; ++s) {
    const float logit = logits[s * stride];
    if (logit >= least) total += exp32((logit - best) * sampling.inverse_temperature);
    cumulative[s] = total;
  }
  const float target = unit_uniform(bits) * total;
  uint8_t state = 0;
  for (int s = 0; s + 1 < num_states; ++s) state += cumulative[s] <= target;
  return state;
}

}  // namespace nca
