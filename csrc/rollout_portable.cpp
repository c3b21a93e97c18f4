// One cell at a time, for any processor: the slow truth that the wider kernels must equal to the bit.
#include "rollout_kernel.h"

namespace nca {
namespace portable {

struct Row {
  static constexpr int CELLS = 1;
  Features features;

  static Row broadcast(const Features& features) { return {features}; }
  static Row load(const Features* one) { return {*one}; }
  static Row load(const Features* table, const uint16_t* const (&cells)[CELLS], int offset) {
    return {table[cells[0][offset] / 2]};
  }
  void store(Features* one) const { *one = features; }
};

static inline Row add(Row a, const Row& b) {
  for (int k = 0; k < NUM_FEATURES; ++k) a.features.value[k] += b.features.value[k];
  return a;
}

struct Lanes {
  static constexpr int WIDTH = 1;
  static constexpr int PACK = 1, BLOCK = 16;
  struct Rivals {
    int32_t value;
    void store(int32_t* to) const { *to = value; }
  };
  float value;

  static Lanes broadcast(float value) { return {value}; }
  static Lanes load(const float* from) { return {*from}; }
  static void transpose(const Row (&rows)[1], Lanes (&out)[NUM_FEATURES]) {
    for (int k = 0; k < NUM_FEATURES; ++k) out[k].value = rows[0].features.value[k];
  }
  static void store_states(const Rivals (&rivals)[PACK], uint8_t* state, CellMask& changed, CellMask& doubtful) {
    const uint8_t now = static_cast<uint8_t>(31 - __builtin_clz(static_cast<unsigned>(rivals[0].value)));
    changed = now != *state;
    doubtful = (rivals[0].value & (rivals[0].value - 1)) != 0;
    *state = now;
  }
  void store(float* to) const { *to = value; }
};

static inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {fma32(a.value, b.value, c.value)}; }
static inline Lanes larger(Lanes a, Lanes b) { return {a.value > b.value ? a.value : b.value}; }
static inline Lanes positive_part(Lanes a) { return {a.value > 0.0f ? a.value : 0.0f}; }
static inline Lanes operator-(Lanes a, float b) { return {a.value - b}; }
static inline Lanes::Rivals add_where_at_least(Lanes::Rivals rivals, Lanes logit, Lanes least, int what) {
  return {rivals.value + (logit.value >= least.value ? what : 0)};
}

struct Slots {
  static constexpr int COUNT = 1;
  uint64_t value;

  static Slots broadcast(uint32_t word) { return {word}; }
  static Slots ascending(uint32_t first) { return {first}; }
  static void store(Slots a, Slots b, Slots c, Slots d, uint32_t* to) {
    const Slots words[4] = {a, b, c, d};
    for (int k = 0; k < 4; ++k) to[k] = static_cast<uint32_t>(words[k].value);
  }
};

static inline Slots multiply(Slots a, uint32_t b) { return {(a.value & 0xFFFFFFFFu) * b}; }
static inline Slots high_half(Slots a) { return {a.value >> 32}; }
static inline Slots exclusive_or(Slots a, Slots b) { return {a.value ^ b.value}; }

#include "rollout_row_tables.h"

#include "rollout_kernel_body.h"  // after what it uses

}  // namespace portable

const Kernel portable_kernel = NCA_KERNEL(portable);

}  // namespace nca
