// The arithmetic of one cell: neighbourhood -> logits -> next state. The only place in C++ where it exists.
//
// `Real` is float, or a vector of cells with the same operators: each lane does exactly what the float does, in the
// same order, so that results are equal to the bit for every width.
//
// The network (paper, section on rules; released code utils/nca.py): 3x3 convolution over one-hot states -> 4 features
// -> 16 hidden, ReLU -> one logit a state. On one-hot input the convolution is a sum of nine table entries.
#pragma once

#include <stdint.h>

#include "counter_rng.h"
#include "float_math.h"
#include "host_device.h"

namespace nca {

constexpr int MAX_STATES = 16;
constexpr int NUM_NEIGHBOURS = 9;
constexpr int NUM_ROWS = 3;
constexpr int NUM_FEATURES = 4;
constexpr int NUM_HIDDEN = 16;
constexpr float LOGIT_WINDOW = 17.0f;  // in units of the temperature: e^-17 < 2^-24, below what a uniform can resolve

struct alignas(16) Features {
  float value[NUM_FEATURES];
};

// The network in integers of 16 bits, for a first look at a cell (rollout_coarse_avx512.h). Pairs of values share 32
// bits, the first in the low half.
struct alignas(64) CoarseTables {
  int32_t plane[NUM_NEIGHBOURS][NUM_FEATURES / 2][MAX_STATES];
  int32_t hidden_weight[NUM_FEATURES / 2][NUM_HIDDEN];
  int32_t hidden_start[NUM_HIDDEN];
  int32_t logit_weight[NUM_HIDDEN / 2][MAX_STATES];
  int32_t logit_start[MAX_STATES];
  float unit;   // what a logit of 1 comes to
  float error;  // how far the difference of two logits, times `unit`, and that of their integers can lie apart
};

// A rule ready to run. Neighbours are row-major: (-1,-1), (-1,0), ... (1,1).
struct alignas(64) RuleTables {
  Features table[NUM_NEIGHBOURS][MAX_STATES];
  // What a whole row of the neighbourhood adds, (left + centre) + right, for every row of states: three lookups a cell,
  // not nine. Filled once a rule by kernels that look rows up (rollout_row_tables.h).
  Features row_table[NUM_ROWS][MAX_STATES * MAX_STATES * MAX_STATES];
  // The table by feature, for kernels that look states up in a register of MAX_STATES (rollout_avx512.cpp).
  float plane[NUM_NEIGHBOURS][NUM_FEATURES][MAX_STATES];
  Features feature_bias;
  alignas(64) float hidden_weight[NUM_HIDDEN][NUM_FEATURES];
  float hidden_bias[NUM_HIDDEN];
  float logit_weight[NUM_HIDDEN][MAX_STATES];
  float logit_bias[MAX_STATES];
  CoarseTables coarse;
};

struct Sampling {
  float inverse_temperature;
  float window;  // LOGIT_WINDOW x temperature
  float identity_bias;
};

// How a tile of cells is laid out: PACK vectors side by side share every broadcast weight, and BLOCK states are summed
// at a time, so that their PACK x BLOCK sums stay in registers. Neither changes the order of any sum.
template <class Real>
constexpr int TILE_CELLS = Real::PACK * Real::WIDTH;

template <class Real, int S, int FIRST>
NCA_FN void logit_block(const RuleTables& rule, const Real (&hidden)[NUM_HIDDEN][Real::PACK],
                        float (&logits)[S][TILE_CELLS<Real>]) {
  constexpr int BLOCKS = (S + Real::BLOCK - 1) / Real::BLOCK, EVEN = (S + BLOCKS - 1) / BLOCKS;
  constexpr int COUNT = S - FIRST < EVEN ? S - FIRST : EVEN;
  Real sum[COUNT][Real::PACK];
  for (int s = 0; s < COUNT; ++s) {
    for (int p = 0; p < Real::PACK; ++p) sum[s][p] = Real::broadcast(rule.logit_bias[FIRST + s]);
  }
  NCA_ROLLED
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    for (int s = 0; s < COUNT; ++s) {
      const Real weight = Real::broadcast(rule.logit_weight[j][FIRST + s]);
      for (int p = 0; p < Real::PACK; ++p) sum[s][p] = fma(hidden[j][p], weight, sum[s][p]);
    }
  }
  for (int s = 0; s < COUNT; ++s) {
    for (int p = 0; p < Real::PACK; ++p) sum[s][p].store(&logits[FIRST + s][p * Real::WIDTH]);
  }
  if constexpr (FIRST + COUNT < S) logit_block<Real, S, FIRST + COUNT>(rule, hidden, logits);
}

template <class Real, int S>
NCA_FN void cell_logits(const RuleTables& rule, const Real (&features)[NUM_FEATURES][Real::PACK],
                        float (&logits)[S][TILE_CELLS<Real>]) {
  Real hidden[NUM_HIDDEN][Real::PACK];
  NCA_ROLLED
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    Real sum[Real::PACK];
    for (int p = 0; p < Real::PACK; ++p) sum[p] = Real::broadcast(rule.hidden_bias[j]);
    for (int k = 0; k < NUM_FEATURES; ++k) {
      const Real weight = Real::broadcast(rule.hidden_weight[j][k]);
      for (int p = 0; p < Real::PACK; ++p) sum[p] = fma(features[k][p], weight, sum[p]);
    }
    for (int p = 0; p < Real::PACK; ++p) hidden[j][p] = positive_part(sum[p]);
  }
  logit_block<Real, S, 0>(rule, hidden, logits);
}

// The states of a cell whose logits are no more than `window` below the best: bit s tells of state s. A cell with one
// such state, the best, comes to that; the others are to be sampled.
template <class Real, int S>
NCA_FN typename Real::Rivals cell_rivals(const float (&logits)[S][TILE_CELLS<Real>], int first, float window) {
  Real best = Real::load(&logits[0][first]);
  for (int s = 1; s < S; ++s) best = larger(best, Real::load(&logits[s][first]));
  const Real least = best - window;
  typename Real::Rivals rivals{};
  for (int s = 0; s < S; ++s) rivals = add_where_at_least(rivals, Real::load(&logits[s][first]), least, 1 << s);
  return rivals;
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
