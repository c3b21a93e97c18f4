// The size that gzip at level 9 (zlib 1.2.13, window 2^15, memory level 8) gives, found without making the output.
//
// Covered: buffers of 1 to 1,024 tokens below 2^16, each as four little-endian bytes (low, high, 0, 0). Up to 4,096
// bytes zlib sees everything at once, in one block: no byte is further away than the window, a match of three bytes is
// never "too far" (4,096), no hash chain has the 4,096 candidates at which a search gives up, and 16,383 symbols, where
// a block ends, are out of reach. One limit can be met: a search after a match of 32 bytes or more gives up after 1,024
// candidates. Where that would hide a match (in buffers of almost nothing but zeros) the functions say UNKNOWN.
#pragma once

#include <stdint.h>

#include <memory>

#include "deflate_block.h"
#include "deflate_chains.h"

namespace nca {

struct Params;

// One per thread.
class DeflateFast {
 public:
  static constexpr int MAX_TOKENS = TokenChains::MAX_TOKENS;
  static constexpr int UNKNOWN = -1;

  DeflateFast();

  // Whether all scored buffers of a law are covered.
  static bool covers(const Params& params);

  // Bytes of the gzip file of `count` tokens, or UNKNOWN.
  int gzip_bytes(const uint16_t* tokens, int count);

  // 1 where low < gzip_bytes < high, else 0, or UNKNOWN. Bounds decide where they can.
  int accept(const uint16_t* tokens, int count, int64_t low, int64_t high);

 private:
  struct Match {
    int length;
    int distance;
  };

  struct Cursor {
    int position;
    Match before;  // of the byte before, if it waits; length 2 for none
    bool known;    // false where zlib would give up a search
  };

  enum Parsed { WHOLE, ENOUGH, LOST };  // LOST where zlib would give up a search

  void begin(const uint16_t* tokens, int count);
  int literal_bits(int first, int last) const;
  int most_static_bits_by_period() const;
  Parsed parse(int enough);
  int next_look(int position, int enough);
  int run_steps(int position);
  template <int PART>
  bool advance(Cursor& at);
  template <int PART>
  Match longest(int position, int floor);
  Match longest_words(const uint16_t* chain, int word, int back, int lead, int floor) const;
  Match walk(int position, int floor) const;
  bool gives_up(int position, int distance) const;
  uint8_t byte(int position) const;

  const uint16_t* tokens_ = nullptr;
  int count_ = 0, bytes_ = 0;
  int shared_word_ = 0;      // whose best match, from its first byte on, is known and short of the longest possible
  Match shared_ = {0, 0};
  BlockCounts counts_;
  std::unique_ptr<TokenChains> chains_;
};

}  // namespace nca
