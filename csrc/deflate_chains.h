// Where each place of a token stream came before, for the match search of deflate_fast.h.
//
// A stream is kept in two forms: its words, the tokens (16 bits; as bytes low, high), and its bytes (low, high, 0, 0 of
// each token). A place is a number of a byte; its part is the remainder by 4, its word the token it lies in.
#pragma once

#include <stdint.h>

namespace nca {

constexpr int NUM_LANES = 8;
typedef uint16_t Lanes __attribute__((vector_size(2 * NUM_LANES)));

struct TokenChains {
  static constexpr int MAX_TOKENS = 1024;
  static constexpr int FRONT = 8;           // what may be read before the beginning of a form, and
  static constexpr int SLACK = 258 + 8;     // behind its end; it decides nothing
  static constexpr int ROW = MAX_TOKENS + NUM_LANES;
  static constexpr int HASH_BITS = 12;
  static constexpr int NUM_THREES = 3 * 256, NUM_FOURS = 4 * 256;

  // What zlib codes from one kind of byte of each word on, where the case is simple: the literal `before`, a match or
  // the literal 0, the literal `after`, each of them or none (NO_LITERAL, distance 0). Then it goes on `advance` (a
  // signed number) further, where a low byte's row follows on a high byte's; 0 where the case is not simple.
  struct Steps {
    uint16_t advance[ROW], before[ROW], match[ROW], after[ROW], distance[ROW];
  };
  static constexpr int STEPS = sizeof(Steps) / sizeof(uint16_t);

  // Takes up to MAX_TOKENS tokens; everything below is of the last stream read.
  void read(const uint16_t* stream, int length);

  const uint16_t* words() const { return tokens + FRONT; }
  const uint8_t* bytes() const { return buffer + FRONT; }
  int three_before(int place) const { return same_three[place & 3][place >> 2]; }
  int four_before(int place) const { return same_four[place & 3][place >> 2]; }

  // The nearest earlier word, 0 for none: the same token; the same low byte, and the same high byte before it; a token
  // and a low byte behind it with the same hash.
  uint16_t same_word[ROW], same_quad[ROW], longer[ROW];
  Steps steps[2];  // from low bytes, from high bytes
  int count;

 private:
  void link();
  void subtract_base(uint16_t* chain);
  void prepare_steps();
  void prepare_low_steps(int w, Lanes number);
  void prepare_high_steps(int w, Lanes number);

  // By part and word, the nearest earlier place, 0 for none: the same three bytes, where two of them are zeros, and the
  // same four bytes, where three are.
  uint16_t same_three[4][ROW], same_four[4][ROW];
  uint16_t tokens[FRONT + MAX_TOKENS + SLACK];
  uint8_t buffer[FRONT + 4 * MAX_TOKENS + SLACK];

  // The last place of each key so far. Words are counted from a base that grows from stream to stream, so that what
  // earlier streams left needs no clearing.
  uint16_t last_word[1 << 16], last_quad[1 << 16], last_longer[1 << HASH_BITS];
  uint16_t last_three[NUM_THREES], last_four[NUM_FOURS];
  uint16_t base;
};

}  // namespace nca
