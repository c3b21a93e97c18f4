// Rules of candidates: drawn from their bits, and made ready to run.
#pragma once

#include <stdint.h>

#include <vector>

#include "nca_cell.h"
#include "rollout.h"
#include "rollout_kernel.h"

namespace nca {

// Weights of one rule by layer, biases apart.
struct RuleShape {
  int conv0, conv1, conv2;

  explicit RuleShape(const Params& p)
      : conv0(9 * p.channels() * NUM_FEATURES), conv1(NUM_FEATURES * NUM_HIDDEN), conv2(NUM_HIDDEN * p.num_states) {}
};

// The kernels of one candidate, in the layout of Weights.
void draw_rule(const Params& params, const Kernel& kernel, uint64_t seed, uint32_t candidate,
               std::vector<float>& scratch, float* conv0, float* conv1, float* conv2);

// Rule `n` of a batch, made ready to run.
void prepare_rule(const Params& params, const Weights& weights, size_t n, RuleTables& rule);

}  // namespace nca
