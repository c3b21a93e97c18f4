#include "deflate_block.h"

#include <math.h>
#include <string.h>

#include <algorithm>

namespace nca {

namespace {

constexpr int MAX_CODE_BITS = 15;
constexpr int MAX_LENGTH_CODE_BITS = 7;
constexpr int NUM_LENGTH_CODES = 19;
constexpr int COPY_PREVIOUS = 16, SHORT_ZEROS = 17, LONG_ZEROS = 18;
constexpr int ENTROPY_SCALE = 1 << 12;
constexpr int MOST_SYMBOLS = MAX_DISTANCE + 2;

struct Tables {
  MatchSymbols symbols = {};
  uint8_t literal_extra[NUM_LITERAL_CODES];
  uint8_t distance_extra[NUM_DISTANCE_CODES];
  uint8_t static_length[NUM_LITERAL_CODES];
  uint32_t times_log_above[MOST_SYMBOLS];      // n log2 n in units of 1 / ENTROPY_SCALE bits, rounded up by 1 to 2

  Tables() {
    memset(literal_extra, 0, sizeof literal_extra);
    int value = 3;
    for (int symbol = 0; symbol < 28; ++symbol) {
      const int extra = symbol < 8 ? 0 : symbol / 4 - 1;
      literal_extra[LENGTH_SYMBOL_3 + symbol] = static_cast<uint8_t>(extra);
      for (int i = 0; i < 1 << extra && value <= MAX_MATCH; ++i) symbols.length[value++] = static_cast<uint8_t>(symbol);
    }
    symbols.length[MAX_MATCH] = 28;  // the longest match has a symbol of its own, without extra bits
    symbols.distance[0] = NO_DISTANCE;
    value = 1;
    for (int symbol = 0; symbol < NUM_DISTANCE_CODES; ++symbol) {
      const int extra = symbol < 4 ? 0 : symbol / 2 - 1;
      distance_extra[symbol] = static_cast<uint8_t>(extra);
      for (int i = 0; i < 1 << extra && value <= MAX_DISTANCE; ++i) {
        symbols.distance[value++] = static_cast<uint8_t>(symbol);
      }
    }
    for (int s = 0; s < NUM_LITERAL_CODES; ++s) {
      static_length[s] = s < 144 ? 8 : s < 256 ? 9 : s < 280 ? 7 : 8;
    }
    times_log_above[0] = times_log_above[1] = 0;
    for (int n = 2; n < MOST_SYMBOLS; ++n) {
      times_log_above[n] = static_cast<uint32_t>(ceil(n * log2(n) * ENTROPY_SCALE)) + 1;
    }
  }
};

const Tables tables;

// Code lengths of one alphabet. zlib's choice among the many optimal codes is part of the size, because the lengths
// are themselves coded: a binary heap ordered by (count, depth), from which the two least are taken, and whose ties are
// broken by where sifting leaves them. So the sifting below is part of the definition.
template <int SYMBOLS, int LIMIT>
class Code {
 public:
  int last = -1;                 // greatest symbol with a code
  uint8_t length[2 * SYMBOLS];   // of symbols up to the last, then depths of inner nodes

  // Returns the bits of all symbols, without extra bits.
  int build(const uint16_t* counts) {
    collect(counts);
    for (int k = size_ / 2; k >= 1; --k) sift_down(static_cast<size_t>(k));
    int next = SYMBOLS;
    uint32_t bits = 0;
    while (size_ >= 2) {
      const uint32_t first = heap_[1];
      heap_[1] = heap_[size_];
      heap_[size_--] = NOTHING;
      sift_down(1);
      const uint32_t second = heap_[1];
      settle(first, next);
      settle(second, next);
      const uint32_t depth = std::max(first & DEPTH_MASK, second & DEPTH_MASK);
      const uint32_t count = (first & COUNT_MASK) + (second & COUNT_MASK);
      bits += count >> COUNT_SHIFT;
      heap_[1] = count + depth + ONE_DEEPER + static_cast<uint32_t>(next++);
      sift_down(1);
    }
    return assign(next - 1, static_cast<int>(bits)) - forced_;
  }

 private:
  // A node: count, depth, number. Counts are below 2^13, depths below 2^5 (their counts grow as Fibonacci numbers do).
  static constexpr uint32_t NOTHING = 0xFFFFFFFFu;
  static constexpr uint32_t ID_BITS = 10, ID_MASK = (1u << ID_BITS) - 1, ONE_DEEPER = 1u << ID_BITS;
  static constexpr uint32_t DEPTH_MASK = 31u << ID_BITS, COUNT_SHIFT = ID_BITS + 5, COUNT_MASK = ~0u << COUNT_SHIFT;

  void collect(const uint16_t* counts) {
    for (int s = 0; s < SYMBOLS; ++s) {
      heap_[size_ + 1] = static_cast<uint32_t>(counts[s]) << COUNT_SHIFT | static_cast<uint32_t>(s);
      size_ += counts[s] != 0;
    }
    if (size_ > 0) last = static_cast<int>(heap_[size_] & ID_MASK);
    while (size_ < 2) {  // a code has at least two symbols; those added count once here and cost nothing in the end
      const int symbol = last < 2 ? last + 1 : 0;
      heap_[++size_] = 1u << COUNT_SHIFT | static_cast<uint32_t>(symbol);
      last = std::max(last, symbol);
      ++forced_;
    }
    std::fill_n(length, last + 1, uint8_t{0});
    std::fill_n(heap_ + size_ + 1, size_ + 1, NOTHING);
  }

  // The node at k sinks below lesser ones. It goes on to the bottom, so that no branch depends on the data: where the
  // node that sinks is no greater than the lesser child, the two change parts, and what sinks on is that child, which
  // ends where it was. Beyond the last there is NOTHING.
  void sift_down(size_t k) {
    uint32_t sinking = heap_[k];
    const size_t size = static_cast<size_t>(size_);
    for (size_t most = 2 * k; most <= size; most *= 2) {
      size_t child = 2 * k;
      child += heap_[child + 1] <= (heap_[child] | ID_MASK);
      const uint32_t lesser = heap_[child];
      const uint32_t change = (sinking ^ lesser) & -static_cast<uint32_t>(sinking <= (lesser | ID_MASK));
      heap_[k] = lesser ^ change;
      sinking ^= change;
      k = child;
    }
    heap_[k] = sinking;
  }

  void settle(uint32_t node, int parent) {
    order_[settled_++] = node;
    parent_[node & ID_MASK] = static_cast<uint16_t>(parent);
  }

  // Lengths from the root down, in the reverse of the order of settling; too long ones are cut to the limit and paid
  // for by the deepest shorter ones. `bits` are those of the tree without a limit.
  int assign(int root, int bits) {
    int longest = 0;
    length[root] = 0;
    for (int i = settled_ - 1; i >= 0; --i) {
      const uint32_t id = order_[i] & ID_MASK;
      const int here = length[parent_[id]] + 1;
      length[id] = static_cast<uint8_t>(here);
      longest = std::max(longest, here);
    }
    return longest <= LIMIT ? bits : shorten();
  }

  int shorten() {
    int with_length[LIMIT + 1] = {};
    int excess = 0;
    for (int i = settled_ - 1; i >= 0; --i) {
      const uint32_t id = order_[i] & ID_MASK;
      excess += length[id] > LIMIT;
      length[id] = std::min<uint8_t>(length[id], LIMIT);
      with_length[length[id]] += id < SYMBOLS;
    }
    for (; excess > 0; excess -= 2) {
      int donor = LIMIT - 1;
      while (with_length[donor] == 0) --donor;
      --with_length[donor];
      with_length[donor + 1] += 2;
      --with_length[LIMIT];
    }
    int bits = 0, i = 0;
    for (int here = LIMIT; here >= 1; --here) {
      for (int left = with_length[here]; left > 0; ++i) {
        const int id = static_cast<int>(order_[i] & ID_MASK);
        if (id >= SYMBOLS) continue;
        length[id] = static_cast<uint8_t>(here);
        bits += here * static_cast<int>(order_[i] >> COUNT_SHIFT);
        --left;
      }
    }
    return bits;
  }

  int size_ = 0, settled_ = 0, forced_ = 0;
  uint32_t heap_[2 * SYMBOLS + 4];
  uint32_t order_[2 * SYMBOLS];
  uint16_t parent_[2 * SYMBOLS];
};

// Counts how the lengths of symbols 0 .. last are told: themselves, as copies of the one before, or as runs of zeros.
// Runs are cut greedily: a run that repeats what was told last may be copied from its first element on.
void count_lengths(const uint8_t* lengths, int last, uint16_t* counts) {
  int told = -1;
  for (int first = 0; first <= last;) {
    const int value = lengths[first];
    const int most = value == 0 ? 138 : value == told ? 6 : 7;
    const int fewest = value == 0 || value == told ? 3 : 4;
    int run = 1;
    while (run < most && first + run <= last && lengths[first + run] == value) ++run;
    if (run < fewest) {
      counts[value] = static_cast<uint16_t>(counts[value] + run);
    } else if (value == 0) {
      ++counts[run <= 10 ? SHORT_ZEROS : LONG_ZEROS];
    } else {
      counts[value] = static_cast<uint16_t>(counts[value] + (value != told));
      ++counts[COPY_PREVIOUS];
    }
    told = value;
    first += run;
  }
}

int extra_bits(const BlockCounts& counts) {
  int bits = 0;
  for (int s = LENGTH_SYMBOL_3; s < NUM_LITERAL_CODES; ++s) bits += counts.literal[s] * tables.literal_extra[s];
  for (int s = 0; s < NUM_DISTANCE_CODES; ++s) bits += counts.distance[s] * tables.distance_extra[s];
  return bits;
}

}  // namespace

const MatchSymbols& match_symbols = tables.symbols;

void BlockCounts::clear() {
  memset(this, 0, sizeof *this);
  literal[END_OF_BLOCK] = 1;
}

int static_bits(const BlockCounts& counts) {
  int bits = extra_bits(counts);
  for (int s = 0; s < NUM_LITERAL_CODES; ++s) bits += counts.literal[s] * tables.static_length[s];
  for (int s = 0; s < NUM_DISTANCE_CODES; ++s) bits += counts.distance[s] * 5;
  return bits;
}

int dynamic_bits(const BlockCounts& counts) {
  static constexpr uint8_t ORDER[NUM_LENGTH_CODES] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  Code<NUM_LITERAL_CODES, MAX_CODE_BITS> literals;
  Code<NUM_DISTANCE_CODES, MAX_CODE_BITS> distances;
  Code<NUM_LENGTH_CODES, MAX_LENGTH_CODE_BITS> lengths;
  int bits = extra_bits(counts) + literals.build(counts.literal) + distances.build(counts.distance);
  uint16_t told[NUM_LENGTH_CODES] = {};
  count_lengths(literals.length, literals.last, told);
  count_lengths(distances.length, distances.last, told);
  bits += lengths.build(told) + 2 * told[COPY_PREVIOUS] + 3 * told[SHORT_ZEROS] + 7 * told[LONG_ZEROS];
  int sent = NUM_LENGTH_CODES;
  while (sent > 4 && lengths.length[ORDER[sent - 1]] == 0) --sent;
  return bits + 5 + 5 + 4 + 3 * sent;
}

// No prefix code needs fewer bits than the entropy of what it codes. Header: 14 bits of counts; at least five lengths
// of three bits, since the code has a symbol for a length other than 0 and the first of those in the order sent stands
// fifth; and every symbol in use costs at least half a bit, told by itself (one bit or more) or as one of at most six
// copies (one bit or more and two extra).
int least_dynamic_bits(const BlockCounts& counts) {
  uint32_t total = 0, matches = 0, used = 0;
  int64_t entropy = 0;
  for (int s = 0; s < NUM_LITERAL_CODES; ++s) {
    total += counts.literal[s];
    used += counts.literal[s] != 0;
    entropy -= tables.times_log_above[counts.literal[s]];
  }
  for (int s = 0; s < NUM_DISTANCE_CODES; ++s) {
    matches += counts.distance[s];
    used += counts.distance[s] != 0;
    entropy -= tables.times_log_above[counts.distance[s]];
  }
  entropy += tables.times_log_above[total];
  entropy += tables.times_log_above[matches];
  entropy -= 4;  // the two totals were rounded up by at most two each
  const int coded = static_cast<int>((std::max<int64_t>(entropy, 0) + ENTROPY_SCALE - 1) / ENTROPY_SCALE);
  return extra_bits(counts) + coded + 14 + 15 + static_cast<int>(used / 2);
}

}  // namespace nca
