// What is compiled once per instruction set, and how the rest of the program calls it.
//
// These files use no inline function with external linkage (see host_device.h).
#pragma once

#include <stdint.h>
#include <string.h>

#include "counter_rng.h"
#include "nca_cell.h"

namespace nca {

// Vectors read and write past the ends: the arrays of a grid have room for so many elements more, `bordered` also
// before the first.
constexpr int SLACK = 64;

typedef uint64_t CellMask;  // a bit a cell

// The shape of a grid, and the room that an update works in.
struct Grid {
  int num_states;
  int height;
  int width;
  uint8_t* bordered;  // the states between a copy of the last row and one of the first: (height + 2) x width
  const uint8_t *at_left, *at_right;  // of each of those 0xFF if it stands in the first column, in the last, else 0
  uint16_t* rows;     // (height + 2) x width row codes; the first row is the last of the grid, the last the first

  int cells() const { return height * width; }
};

struct Kernel {
  const char* name;
  // The words of draws 0 .. of step 0, four a draw, in order: `count` of them, rounded up to whole groups (SLACK).
  void (*words)(const Stream& stream, int count, uint32_t* words);
  // `count` standard normals truncated to two deviations, each from its word.
  void (*truncated_normals)(const uint32_t* words, int count, float* values);
  // `count` samples of one categorical, each from its word; its logits are standard normals of `logit_words`.
  void (*categorical)(const uint32_t* words, int count, const uint32_t* logit_words, int num_states, uint8_t* states);
  // What `step` needs beside the tables and weights that are there already.
  void (*fill_tables)(int num_states, RuleTables& rule);
  // One update of all cells, row-major, in place. True if nothing was drawn and no state changed: then no further
  // update will change one.
  bool (*step)(const Grid& grid, const RuleTables& rule, const Sampling& sampling, const Stream& noise, uint32_t step,
               uint8_t* states);
  // Patches row-major; the first cell of a patch is the least significant digit (released code utils/tokenizers.py).
  void (*tokens)(const Grid& grid, int patch, const uint8_t* states, uint32_t* tokens);
};

extern const Kernel portable_kernel;
#if defined(__x86_64__)
extern const Kernel avx2_kernel;
extern const Kernel avx512_kernel;
extern const Kernel avx512_vnni_kernel;
#endif

}  // namespace nca
