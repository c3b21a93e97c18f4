#include "job.h"

#include <math.h>

namespace nca {
namespace cuda {

namespace {

constexpr size_t MOST_BYTES_OF_WARP = 16 << 10;  // so that twelve warps of small teams fit a processor of sm_90

// As in rollout_cpu.cpp: variance 1 / fan_in after the truncation at two deviations.
float lecun_deviation(int fan_in) { return static_cast<float>(sqrt(1.0 / fan_in) / 0.87962566103423978); }

}  // namespace

Law law_of(const Params& params) {
  uint32_t start_token = 1;
  for (int i = 0; i < params.patch * params.patch; ++i) start_token *= static_cast<uint32_t>(params.num_states);
  Law law{};
  law.num_states = params.num_states;
  law.height = params.height;
  law.width = params.width;
  law.patch = params.patch;
  law.cells = params.cells();
  law.stride = params.width + 2;
  law.channels = params.channels();
  law.patches = params.patches();
  law.burn_in_steps = params.burn_in_steps;
  law.steps_per_frame = params.steps_per_frame;
  law.initial_state = params.initial_state;
  law.wrap_channels = params.wrap_channels;
  law.start_token = start_token;
  const int fan_in[3] = {NUM_NEIGHBOURS * params.channels(), NUM_FEATURES, NUM_HIDDEN};
  for (int i = 0; i < 3; ++i) law.deviation[i] = lecun_deviation(fan_in[i]);
  law.sampling = {1.0f / params.temperature, LOGIT_WINDOW * params.temperature, params.identity_bias};
  return law;
}

std::vector<uint32_t> times_log_table() {
  std::vector<uint32_t> table(MOST_SYMBOLS, 0);
  for (size_t n = 2; n < table.size(); ++n) {
    const double value = static_cast<double>(n) * log2(static_cast<double>(n));
    table[n] = static_cast<uint32_t>(ceil(value * ENTROPY_SCALE)) + 1;
  }
  return table;
}

Shape shape_of(const Law& law) {
  Shape shape{};
  for (const int states : COMPILED_STATES) {
    if (states < law.num_states) continue;
    shape.states = states;
    break;
  }
  shape.team_bytes = team_bytes(shape.states, law.cells, law.places());
  int fewest = 0;
  for (const int size : {WARP, WARP / 2, WARP / 4}) {  // of equals the largest, which needs the least shared memory
    if (size < WARP && WARP / size * shape.team_bytes > MOST_BYTES_OF_WARP) break;
    const int at_once = size * cells_of_lane(shape.states);
    const int lanes = (law.cells + at_once - 1) / at_once * size;
    if (fewest == 0 || lanes < fewest) {
      fewest = lanes;
      shape.team_size = size;
    }
  }
  return shape;
}

}  // namespace cuda
}  // namespace nca
