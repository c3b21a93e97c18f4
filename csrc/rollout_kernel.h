// What is compiled once per instruction set, and how the rest of the program calls it.
//
// These files use no inline function with external linkage (see host_device.h).
#pragma once

#include <stdint.h>
#include <string.h>

#include "counter_rng.h"
#include "nca_cell.h"

namespace nca {

// A grid of uint8 states with a border of one cell that repeats the opposite side.
struct Grid {
  int num_states;
  int height;
  int width;
  int cells;
  int stride;               // bytes of a bordered row, width + 2
  const int32_t* offsets;   // place of each cell in the bordered grid; the last one repeated up to a multiple of 64
  uint8_t* scratch;         // room for so many states
  uint16_t* rows;           // room for a row index of each place of the bordered grid
};

struct Kernel {
  const char* name;
  // `count` standard normals truncated to two deviations; value i is word i % 4 of draw i / 4 of step 0.
  void (*truncated_normals)(const Stream& stream, int count, float* values);
  // One update of all cells; leaves the border of `after` to the caller.
  void (*step)(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise, uint32_t step,
               const uint8_t* before, uint8_t* after);
};

extern const Kernel portable_kernel;
#if defined(__x86_64__)
extern const Kernel avx2_kernel;
#endif

}  // namespace nca
