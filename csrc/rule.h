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

  int total() const { return conv0 + conv1 + conv2; }
};

// Draws rules. One per thread.
class RuleDraw {
 public:
  RuleDraw(const Params& params, const Kernel& kernel);

  // One candidate's kernels, its biases 0; good until the next call.
  Weights weights(uint64_t seed, uint32_t candidate);

 private:
  const RuleShape shape_;
  const Kernel& kernel_;
  const float deviations_[3];
  std::vector<uint32_t> words_;
  std::vector<float> values_;  // conv0, conv1, conv2
};

// Rule `n` of a batch, made ready to run by `kernel`.
void prepare_rule(const Params& params, const Kernel& kernel, const Weights& weights, size_t n, RuleTables& rule);

}  // namespace nca
