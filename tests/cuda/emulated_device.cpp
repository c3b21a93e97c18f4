// device.h without a GPU: memory is memory, a queue does its work when it is given, and kernels run lane after lane,
// from the files that nvcc compiles. NCA_EMULATED_ORDER=reversed runs the lanes of every phase in the reverse order.
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "cuda/candidate.cuh"
#include "cuda/device.h"
#include "cuda/filter.cuh"

namespace nca {
namespace cuda {

struct Queue {};

namespace {

template <int S>
void roll_out_all(const Rollouts& job, const Shape& shape) {
  const uint32_t teams = static_cast<uint32_t>(WARP / shape.team_size);
  std::vector<uint8_t> shared(shape.team_bytes + 16);
  uint8_t* memory = shared.data() + (16 - reinterpret_cast<uintptr_t>(shared.data()) % 16) % 16;
  const uint32_t started = (job.count + teams - 1) / teams * teams;  // as on the device, whole warps
  for (uint32_t index = 0; index < started; ++index) {
    memset(memory, 0xA5, shape.team_bytes);  // shared memory comes with anything in it
    roll_out<S>(Team(shape.team_size), job, index, memory);
  }
}

}  // namespace

void check_device() {}
const char* device_name() { return "emulation"; }

void* allocate(size_t bytes) {
  void* memory = malloc(bytes);
  memset(memory, 0xA5, bytes);
  return memory;
}
void* allocate_pinned(size_t bytes) { return allocate(bytes); }
void release(void* memory) { free(memory); }
void release_pinned(void* memory) { free(memory); }

Queue* make_queue() {
  const char* order = getenv("NCA_EMULATED_ORDER");
  Team::reversed = order && strcmp(order, "reversed") == 0;
  return new Queue;
}
void drop_queue(Queue* queue) { delete queue; }
void wait(Queue*) {}
void upload(Queue*, void* device, const void* pinned, size_t bytes) { memcpy(device, pinned, bytes); }
void download(Queue*, void* pinned, const void* device, size_t bytes) { memcpy(pinned, device, bytes); }

void run(Queue*, const Rollouts& job) {
  const Shape shape = shape_of(job.law);
  switch (shape.states) {
    case 2: return roll_out_all<2>(job, shape);
    case 4: return roll_out_all<4>(job, shape);
    case 8: return roll_out_all<8>(job, shape);
    case 10: return roll_out_all<10>(job, shape);
    case 12: return roll_out_all<12>(job, shape);
    case 16: return roll_out_all<16>(job, shape);
  }
}

void run(Queue*, const Filter& job) {
  std::vector<uint32_t> shared(filter_bytes(job.length) / 4, 0xA5A5A5A5u);
  for (uint32_t i = 0; i < job.count; ++i) filter(Team(WARP), job, i, reinterpret_cast<uint8_t*>(shared.data()));
}

}  // namespace cuda
}  // namespace nca

// Features and logits of one neighbourhood, for a test of the order of sums: table (9, 10, 4), hidden (16, 4),
// logit (16, 10), row-major states (9).
extern "C" __attribute__((visibility("default"))) void emulated_logits(const float* table, const float* hidden,
                                                                        const float* logit, const uint8_t* nine,
                                                                        float* features, float* logits) {
  using namespace nca::cuda;
  constexpr int S = 10;
  RuleMemory<S> rule{};
  for (int i = 0; i < 9 * S * 4; ++i) rule.table[i / (4 * S)][i / 4 % S].value[i % 4] = table[i];
  for (int i = 0; i < 16 * 4; ++i) rule.hidden[i / 4].value[i % 4] = hidden[i];
  for (int i = 0; i < 16 * S; ++i) rule.logit[i / S][i % S / 4].value[i % S % 4] = logit[i];
  float of_cell[1][4], out[1][S];
  features_at(rule, nine + 4, 3, of_cell[0]);
  logits_of<S, 1>(rule, S, of_cell, out);
  memcpy(features, of_cell[0], sizeof of_cell[0]);
  memcpy(logits, out[0], sizeof out[0]);
}
