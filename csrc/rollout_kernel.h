// What is compiled once per instruction set, and how the rest of the program calls it.
//
// These files use no inline function with external linkage (see host_device.h).
#pragma once

#include <stdint.h>
#include <string.h>

#include "counter_rng.h"
#include "nca_cell.h"

namespace nca {

// Vectors read and write past the ends of rows: the arrays of a grid have room for so many elements more.
constexpr int SLACK = 64;

// The shape of a grid, and the room that an update works in.
struct Grid {
  int num_states;
  int height;
  int width;
  uint8_t* bordered;  // height x (width + 2): each row between the cells that it wraps to
  uint16_t* rows;     // (height + 2) x width row indices; the first row is the last of the grid, the last the first

  int cells() const { return height * width; }
};

struct Kernel {
  const char* name;
  // `count` standard normals truncated to two deviations; value i is word i % 4 of draw i / 4 of step 0.
  void (*truncated_normals)(const Stream& stream, int count, float* values);
  // One update of all cells, row-major, in place. True if nothing was drawn and no state changed: then no further
  // update will change one.
  bool (*step)(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise, uint32_t step,
               uint8_t* states);
};

extern const Kernel portable_kernel;
#if defined(__x86_64__)
extern const Kernel avx2_kernel;
#endif

}  // namespace nca
