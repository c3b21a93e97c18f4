// One cell at a time, for any processor: the slow truth that the wider kernels must equal to the bit.
#include "rollout_kernel.h"

namespace nca {
namespace portable {

struct Lanes {
  static constexpr int WIDTH = 1;
  float value;

  static Lanes broadcast(float value) { return {value}; }
  static Lanes load(const float* from) { return {*from}; }
  static void transpose(const Features* features, Lanes (&out)[NUM_FEATURES]) {
    for (int k = 0; k < NUM_FEATURES; ++k) out[k].value = features[0].value[k];
  }
  void store(float* to) const { *to = value; }
};

static inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {fma32(a.value, b.value, c.value)}; }
static inline Lanes larger(Lanes a, Lanes b) { return {a.value > b.value ? a.value : b.value}; }
static inline Lanes smaller(Lanes a, Lanes b) { return {a.value < b.value ? a.value : b.value}; }
static inline Lanes positive_part(Lanes a) { return {a.value > 0.0f ? a.value : 0.0f}; }
static inline Lanes select_greater(Lanes a, Lanes b, Lanes yes, Lanes no) { return a.value > b.value ? yes : no; }
static inline unsigned at_least(Lanes second, Lanes best, float window) { return second.value >= best.value - window; }

#include "rollout_kernel_body.h"

}  // namespace portable

const Kernel portable_kernel = {"portable", portable::truncated_normals_kernel, portable::step_kernel};

}  // namespace nca
