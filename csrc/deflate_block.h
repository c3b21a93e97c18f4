// The size of one deflate block (RFC 1951) from the counts of its symbols, as zlib chooses and codes it.
#pragma once

#include <stdint.h>

namespace nca {

constexpr int NUM_LITERAL_CODES = 286;
constexpr int NUM_DISTANCE_CODES = 30;
constexpr int END_OF_BLOCK = 256;
constexpr int MAX_MATCH = 258;
constexpr int MAX_DISTANCE = 4096;  // of what is counted here; the format goes to 32,768

constexpr int LENGTH_SYMBOL_3 = 257;  // of a match of three bytes
constexpr int NO_LITERAL = 287, NO_DISTANCE = 31;  // in the static code, but in no stream

struct MatchSymbols {
  uint8_t length[MAX_MATCH + 1];  // minus LENGTH_SYMBOL_3
  uint8_t distance[MAX_DISTANCE + 1];
};

extern const MatchSymbols& match_symbols;

struct BlockCounts {
  uint16_t literal[NO_LITERAL + 1];  // literals, end of block, lengths
  uint16_t distance[NO_DISTANCE + 1];

  void clear();
  void add_literal(uint8_t byte) { ++literal[byte]; }
  void add_match(int length, int bytes_back) {
    ++literal[LENGTH_SYMBOL_3 + match_symbols.length[length]];
    ++distance[match_symbols.distance[bytes_back]];
  }
};

// Bits without the three that name the kind of block.
int static_bits(const BlockCounts& counts);
int dynamic_bits(const BlockCounts& counts);
// Proven never to exceed dynamic_bits.
int least_dynamic_bits(const BlockCounts& counts);

}  // namespace nca
