#include "deflate_chains.h"

#include <string.h>

#include <algorithm>

#include "deflate_block.h"

namespace nca {

namespace {

// Families of three bytes with two zeros, each 256 wide; three zeros are number 0.
constexpr uint32_t FIRST_SET = 0, LAST_SET = 256, MIDDLE_SET = 512;

// Families of four bytes with three zeros, by the place of the other; four zeros are number 0.
uint32_t four_of(uint32_t place, uint32_t byte) { return byte ? place << 8 | byte : 0; }

constexpr uint16_t length_symbol(int below_11) { return static_cast<uint16_t>(LENGTH_SYMBOL_3 + below_11 - 3); }

Lanes load(const uint16_t* from) {
  Lanes lanes;
  memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

void store(uint16_t* to, Lanes lanes) { memcpy(to, &lanes, sizeof lanes); }

Lanes all(int value) { return Lanes{} + static_cast<uint16_t>(value); }

Lanes choose(Lanes mask, Lanes yes, Lanes no) { return (yes & mask) | (no & ~mask); }

}  // namespace

void TokenChains::read(const uint16_t* stream, int length) {
  count = length;
  uint16_t* own = tokens + FRONT;
  std::copy_n(stream, count, own);
  std::fill_n(own + count, NUM_LANES + 1, uint16_t{0});
  for (int w = 0; w < count; ++w) {
    const uint32_t token = stream[w];  // little-endian processors only, as for the datasets
    memcpy(buffer + FRONT + 4 * w, &token, sizeof token);
  }
  link();
  for (uint16_t* chain : {same_word, same_quad, longer}) subtract_base(chain);
  prepare_steps();
}

// zlib never matches place 0, so it is on no chain.
void TokenChains::link() {
  if (base + 2 * MAX_TOKENS > UINT16_MAX) {
    memset(last_word, 0, sizeof last_word);
    memset(last_quad, 0, sizeof last_quad);
    memset(last_longer, 0, sizeof last_longer);
    base = 0;
  }
  base = static_cast<uint16_t>(base + MAX_TOKENS);
  memset(last_three, 0, sizeof last_three);
  memset(last_four, 0, sizeof last_four);
  uint16_t hashes[ROW];
  for (int w = 0; w < count; w += NUM_LANES) {
    store(hashes + w, (load(words() + w) * 40503 + (load(words() + w + 1) & 0xFF) * 25717) >> (16 - HASH_BITS));
  }
  const auto join_three = [&](int part, int w, uint32_t three) {
    same_three[part][w] = last_three[three];
    last_three[three] = static_cast<uint16_t>(4 * w + part);
  };
  const auto join_four = [&](int part, int w, uint32_t four) {
    same_four[part][w] = last_four[four];
    last_four[four] = static_cast<uint16_t>(4 * w + part);
  };
  uint32_t high_before = words()[0] >> 8;
  join_three(1, 0, FIRST_SET + high_before);
  for (int w = 1; w < count; ++w) {
    const uint32_t token = words()[w], low = token & 0xFF, high = token >> 8;
    const uint16_t here = static_cast<uint16_t>(base + w);
    const auto join = [&](uint16_t* chain, uint16_t& last) {
      chain[w] = last;
      last = here;
    };
    join(same_word, last_word[token]);
    join(same_quad, last_quad[high_before << 8 | low]);
    join(longer, last_longer[hashes[w]]);
    join_three(2, w - 1, low ? LAST_SET + low : 0);  // 0, 0, low
    if (low == 0 || high_before == 0) join_four(1, w - 1, four_of(low ? 3 : 0, low | high_before));
    if (low == 0 || high == 0) {
      join_three(3, w - 1, low ? MIDDLE_SET + low : high ? LAST_SET + high : 0);  // 0, low, high
      join_three(0, w, high ? MIDDLE_SET + high : FIRST_SET + low);               // low, high, 0
      join_four(2, w - 1, four_of(low ? 2 : 3, low | high));
      join_four(3, w - 1, four_of(low ? 1 : 2, low | high));
      join_four(0, w, four_of(low ? 0 : 1, low | high));
    }
    join_three(1, w, FIRST_SET + high);  // high, 0, 0
    high_before = high;
  }
}

void TokenChains::subtract_base(uint16_t* chain) {
  chain[0] = 0;
  for (int w = 0; w < count; w += NUM_LANES) {
    const Lanes place = load(chain + w);
    store(chain + w, (place - base) & (place > base));
  }
  std::fill_n(chain + count, NUM_LANES, uint16_t{0});
}

// Fills the steps of words 1 .. count - 3; before them and behind them nothing is simple.
void TokenChains::prepare_steps() {
  Lanes number = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int w = 0; w < count; w += NUM_LANES, number += NUM_LANES) {
    prepare_low_steps(w, number);
    prepare_high_steps(w, number);
  }
  for (int w : {0, std::max(count - 2, 0), count - 1, count}) steps[0].advance[w] = steps[1].advance[w] = 0;
}

// From a low byte: (low, high, 0, 0) where the word is known, else a literal. Simple where no longer match begins here
// or at the high byte (which must be longer than four bytes to be taken), and no zero brings in unaligned ones.
inline void TokenChains::prepare_low_steps(int w, Lanes number) {
  Steps& step = steps[0];
  const Lanes token = load(words() + w), low = token & 0xFF, next_low = load(words() + w + 1) & 0xFF;
  const Lanes word = load(same_word + w), known = word != 0;
  const Lanes more = (known & load(longer + w)) | load(same_quad + w + 1);
  const Lanes simple = (low != 0) & (token >> 8 != 0) & (next_low != 0) & (more == 0);
  store(step.before + w, choose(known, all(NO_LITERAL), low));
  store(step.match + w, choose(known, all(length_symbol(4)), all(NO_LITERAL)));
  store(step.distance + w, 4 * (number - word) & known);
  store(step.after + w, all(NO_LITERAL));
  store(step.advance + w, choose(known, all(1), all(STEPS)) & simple);
}

// From a high byte, the first of these that there is: a literal and the match (0, 0, low, high, 0, 0), where the next
// word is known; the match (high, 0, 0) and the literal low; a literal and (0, 0, low); the literals high, 0, 0. Simple
// where there is no longer match of these kinds, and no zero.
inline void TokenChains::prepare_high_steps(int w, Lanes number) {
  Steps& step = steps[1];
  const Lanes high = load(words() + w) >> 8, next = load(words() + w + 1), next_low = next & 0xFF;
  const Lanes first = load(same_three[1] + w), last = load(same_three[2] + w);
  const Lanes word = load(same_word + w + 1), by_word = word != 0;
  const Lanes by_first = ~by_word & (first != 0), by_last = ~(by_word | by_first) & (last != 0);
  const Lanes none = ~(by_word | by_first | by_last), at = 4 * number;
  store(step.before + w, choose(by_first, all(NO_LITERAL), high));
  store(step.match + w, (by_word & length_symbol(6)) | ((by_first | by_last) & length_symbol(3)));
  store(step.distance + w,
        ((at + 4 - 4 * word) & by_word) | ((at + 1 - first) & by_first) | ((at + 2 - last) & by_last));
  store(step.after + w, ((by_word | by_last) & NO_LITERAL) | (by_first & next_low));
  const Lanes more = (by_word & load(longer + w + 1)) | load(same_quad + w + 1);
  const Lanes simple = (high != 0) & (next_low != 0) & (next >> 8 != 0) & (more == 0);
  const Lanes advance = (by_word & static_cast<uint16_t>(2 - STEPS)) | ((by_first | by_last) & 1) |
                        (none & static_cast<uint16_t>(1 - STEPS));
  store(step.advance + w, advance & simple);
}

}  // namespace nca
