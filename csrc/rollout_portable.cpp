// One cell at a time, for any processor: the slow truth that the wider kernels must equal to the bit.
#include "rollout_kernel.h"

namespace nca {
namespace portable {

struct Row {
  static constexpr int CELLS = 1;
  Features features;

  static Row broadcast(const Features& features) { return {features}; }
  static Row load(const Features* table, const uint16_t* const (&cells)[CELLS], int offset) {
    return {table[cells[0][offset] / 2]};
  }
};

static inline Row add(Row a, const Row& b) {
  for (int k = 0; k < NUM_FEATURES; ++k) a.features.value[k] += b.features.value[k];
  return a;
}

struct Lanes {
  static constexpr int WIDTH = 1;
  static constexpr int PACK = 1, BLOCK = 16;
  typedef int Tally;
  float value;

  static Lanes broadcast(float value) { return {value}; }
  static Lanes load(const float* from) { return {*from}; }
  static void transpose(const Row (&rows)[1], Lanes (&out)[NUM_FEATURES]) {
    for (int k = 0; k < NUM_FEATURES; ++k) out[k].value = rows[0].features.value[k];
  }
  static void store_states(const Tally (&tally)[PACK], uint8_t* state, unsigned& changed, unsigned& doubtful) {
    const uint8_t now = static_cast<uint8_t>(tally[0] % TALLY_ONE);
    changed = now != *state;
    doubtful = tally[0] >= 2 * TALLY_ONE;
    *state = now;
  }
  void store(float* to) const { *to = value; }
};

static inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {fma32(a.value, b.value, c.value)}; }
static inline Lanes larger(Lanes a, Lanes b) { return {a.value > b.value ? a.value : b.value}; }
static inline Lanes positive_part(Lanes a) { return {a.value > 0.0f ? a.value : 0.0f}; }
static inline Lanes operator-(Lanes a, float b) { return {a.value - b}; }
static inline int add_where_at_least(int tally, Lanes logit, Lanes least, int what) {
  return tally + (logit.value >= least.value ? what : 0);
}

#include "rollout_kernel_body.h"

}  // namespace portable

const Kernel portable_kernel = {"portable", portable::truncated_normals_kernel, portable::step_kernel};

}  // namespace nca
