// Whether gzip at level 9 makes more than `low` and fewer than `high` bytes of a stream of tokens: one warp a stream.
//
// zlib's matches are found as deflate_fast.h does, by what is proven there, but without its chains: the lanes look at
// 32 earlier places at once. From the symbols' counts follow two bounds of the size, the upper the static code's, the
// lower the entropy's (deflate_block.h). What lies between them is left to the host, and so is a stream in which zlib
// might give up a search. All of it is integers, and every lane knows the cursor.
#pragma once

#include "job.h"
#include "team.cuh"

namespace nca {
namespace cuda {

constexpr int SHORTEST_MATCH = 3, LONGEST_MATCH = 258;
constexpr int GOOD_LENGTH = 32, GOOD_CANDIDATES = 1024;  // zlib may give up a search after a match of this length
constexpr int HEADER_AND_TRAILER_BYTES = 18;
constexpr int END_OF_BLOCK = 256, FIRST_LENGTH = 257;

constexpr uint32_t NO_TOKEN = ~0u;

struct Match {
  int length;  // 2 for none
  int distance;
};

// A warp's share of shared memory; filter_bytes counts it.
struct StreamMemory {
  uint32_t* word;   // tokens: the bytes low, high, 0, 0; two more may be read
  uint32_t* count;  // of symbols: literals, end of block, lengths; then distances

  NCA_MEMBER StreamMemory(uint8_t* memory, int length)
      : word(reinterpret_cast<uint32_t*>(memory)), count(word + length + 2) {}
};

NCA_FN uint32_t four_bytes(const uint32_t* word, int position) {
  const uint64_t two = word[position >> 2] | static_cast<uint64_t>(word[(position >> 2) + 1]) << 32;
  return static_cast<uint32_t>(two >> 8 * (position & 3));
}

// Equal leading bytes of two places, at most `most`.
NCA_FN int equal_bytes(const uint32_t* word, int a, int b, int most) {
  for (int n = 0; n < most; n += 4) {
    const uint32_t different = four_bytes(word, a + n) ^ four_bytes(word, b + n);
    if (different == 0) continue;
    const int equal = n + (different & 0xFF ? 0 : different & 0xFFFF ? 1 : different & 0xFFFFFF ? 2 : 3);
    return equal < most ? equal : most;
  }
  return most;
}

// Of two matches the longer has the greater key, of equals the nearer; 0 where there is none.
NCA_FN uint32_t key_of(int length, int distance) {
  return length < SHORTEST_MATCH ? 0 : static_cast<uint32_t>(length) << 13 | static_cast<uint32_t>(8191 - distance);
}

NCA_FN Match match_of(uint32_t key) {
  if (key == 0) return {SHORTEST_MATCH - 1, 0};
  return {static_cast<int>(key >> 13), 8191 - static_cast<int>(key & 8191)};
}

class StreamParse {
 public:
  NCA_MEMBER StreamParse(const Team& team, const StreamMemory& memory, int length)
      : team_(team), word_(memory.word), count_(memory.count), length_(length), bytes_(4 * length) {}

  // Counts the symbols of zlib's lazy parse. False where zlib might give up a search.
  NCA_MEMBER bool parse() {
    Match before{SHORTEST_MATCH - 1, 0};  // of the byte before, if it waits
    bool waiting = false;
    int position = 0;
    while (position < bytes_) {
      Match here{SHORTEST_MATCH - 1, 0};
      if (bytes_ - position >= SHORTEST_MATCH && before.length < LONGEST_MATCH) here = longest(position);
      if (before.length >= SHORTEST_MATCH && here.length <= before.length) {
        add_match(before);
        position += before.length - 1;
        before = {SHORTEST_MATCH - 1, 0};
        waiting = false;
        continue;
      }
      if (before.length >= GOOD_LENGTH && here.distance > GOOD_CANDIDATES) return false;
      if (waiting) add_literal(position - 1);
      before = here;
      waiting = true;
      ++position;
    }
    if (waiting) add_literal(bytes_ - 1);
    add(END_OF_BLOCK);
    static_bits_ += 7;
    return true;
  }

  NCA_MEMBER int8_t verdict(int low, int high, const uint32_t* times_log) {
    const int most = whole_bytes(static_bits_ + extra_bits_);
    if (most >= bytes_ + 4) return UNDECIDED;  // it may be stored as it is
    const int upper = HEADER_AND_TRAILER_BYTES + most;
    if (upper <= low) return 0;
    const int least = HEADER_AND_TRAILER_BYTES + whole_bytes(least_dynamic_bits(times_log));
    const int lower = least < upper ? least : upper;
    if (lower >= high) return 0;
    return lower > low && upper < high ? 1 : UNDECIDED;
  }

 private:
  NCA_MEMBER static int whole_bytes(int bits) { return (3 + bits + 7) / 8; }

  // zlib's match at `position`: the longest, of equals the nearest. deflate_fast.cpp says why only whole tokens can
  // match where the bytes around are not zero, and which three bytes are the exception.
  NCA_MEMBER Match longest(int position) {
    const int part = position & 3, word = (position + 3) >> 2;  // the token that begins here or next
    const uint32_t next = word_[word], own = word_[position >> 2];
    const bool zero = part == 1 ? own >> 8 == 0 || (word < length_ && (next & 0xFF) == 0)
                                : (next & 0xFF) == 0 || next >> 8 == 0;
    if (zero) return longest_anywhere(position);
    const int lead = 4 * word - position;
    if (part != 1 && word == shared_word_) {
      return shared_.length ? Match{shared_.length + lead, shared_.distance} : Match{SHORTEST_MATCH - 1, 0};
    }
    // The three bytes as a token of their own, which begins where tokens do (high, 0, 0) or a byte before (0, 0, low).
    const uint32_t alone = part == 1 ? own >> 8 : part == 2 ? (next & 0xFF) << 8 : NO_TOKEN;
    const uint32_t tested = part == 2 ? 0xFF : NO_TOKEN;  // bits of `next` that three equal bytes imply
    PerLane<uint32_t> key;
    team_.phase([&](int lane) {
      uint32_t best = 0;
      for (int v = 1 + lane; v < word; v += WARP) {
        const uint32_t different = word_[v] ^ next;
        const bool same = part == 1 ? (word_[v - 1] ^ own) >> 8 == 0 : (different & tested) == 0;
        if (word_[v] == alone) best = greater(best, key_of(SHORTEST_MATCH, position - 4 * v + (part == 2)));
        if (same) {
          const int more = different ? (different & 0xFF) == 0 : equal_tokens(v, word);  // most end at once
          best = greater(best, key_of(at_most(lead + more, position), 4 * (word - v)));
        }
      }
      key[lane] = best;
    });
    const Match found = match_of(team_.greatest(key));
    if (part != 1 && found.length < LONGEST_MATCH - 3) {
      shared_word_ = word;
      shared_ = found.length - lead >= 4 ? Match{found.length - lead, found.distance} : Match{0, 0};
    }
    return found;
  }

  NCA_MEMBER static uint32_t greater(uint32_t a, uint32_t b) { return a > b ? a : b; }

  NCA_MEMBER int at_most(int length, int position) const {
    const int most = bytes_ - position < LONGEST_MATCH ? bytes_ - position : LONGEST_MATCH;
    return length < most ? length : most;
  }

  // Equal leading bytes of two places where tokens begin, the first before the second; as many as matter.
  NCA_MEMBER int equal_tokens(int a, int b) const {
    int equal = 0;
    for (; b < length_ && equal < LONGEST_MATCH; ++a, ++b, equal += 4) {
      const uint32_t different = word_[a] ^ word_[b];
      if (different) return equal + ((different & 0xFF) == 0);
    }
    return equal;
  }

  NCA_MEMBER Match longest_anywhere(int position) {
    const int most = at_most(LONGEST_MATCH, position);
    const uint32_t three = four_bytes(word_, position) << 8;
    PerLane<uint32_t> key;
    team_.phase([&](int lane) {
      uint32_t best = 0;
      for (int place = 1 + lane; place < position; place += WARP) {
        if (four_bytes(word_, place) << 8 != three) continue;
        best = greater(best, key_of(equal_bytes(word_, position, place, most), position - place));
      }
      key[lane] = best;
    });
    return match_of(team_.greatest(key));
  }

  NCA_MEMBER void add(int symbol) {
    team_.phase([&](int lane) {
      if (lane == 0) ++count_[symbol];
    });
  }

  NCA_MEMBER void add_literal(int position) {
    const int byte = static_cast<int>(four_bytes(word_, position) & 0xFF);
    add(byte);
    static_bits_ += byte < 144 ? 8 : 9;
  }

  NCA_MEMBER void add_match(const Match& match) {
    const int length = match.length - SHORTEST_MATCH, distance = match.distance - 1;
    const int length_extra = length < 8 || match.length == LONGEST_MATCH ? 0 : log2_of(length) - 2;
    const int length_symbol = match.length == LONGEST_MATCH ? 28
                              : length < 8 ? length : 4 * length_extra + 4 + (length >> length_extra & 3);
    const int distance_extra = distance < 4 ? 0 : log2_of(distance) - 1;
    const int distance_symbol = distance < 4 ? distance : 2 * distance_extra + 2 + (distance >> distance_extra & 1);
    add(FIRST_LENGTH + length_symbol);
    add(NUM_LITERAL_SYMBOLS + distance_symbol);
    static_bits_ += (length_symbol < 23 ? 7 : 8) + 5;
    extra_bits_ += length_extra + distance_extra;
    ++matches_;
  }

  NCA_MEMBER static int log2_of(int value) {
#if defined(__CUDA_ARCH__)
    return 31 - __clz(value);
#else
    return 31 - __builtin_clz(static_cast<unsigned>(value));
#endif
  }

  // Proven in deflate_block.cpp never to exceed what zlib's dynamic code takes.
  NCA_MEMBER int least_dynamic_bits(const uint32_t* times_log) {
    PerLane<uint32_t> sum, used, literals;
    team_.phase([&](int lane) {
      sum[lane] = used[lane] = literals[lane] = 0;
      for (int s = lane; s < NUM_SYMBOLS; s += WARP) {
        sum[lane] += times_log[count_[s]];
        used[lane] += count_[s] != 0;
        literals[lane] += s < NUM_LITERAL_SYMBOLS ? count_[s] : 0;
      }
    });
    const int of_all = static_cast<int>(times_log[team_.sum(literals)] + times_log[matches_]);
    const int entropy = of_all - static_cast<int>(team_.sum(sum)) - 4;  // the two were rounded up by at most two each
    const int coded = ((entropy > 0 ? entropy : 0) + ENTROPY_SCALE - 1) / ENTROPY_SCALE;
    return extra_bits_ + coded + 14 + 15 + static_cast<int>(team_.sum(used)) / 2;
  }

  const Team& team_;
  const uint32_t* const word_;
  uint32_t* const count_;
  const int length_, bytes_;
  int static_bits_ = 0, extra_bits_ = 0, matches_ = 0;
  int shared_word_ = 0;  // whose best match of whole tokens, from its first byte on, is known: short of the longest
  Match shared_{0, 0};   // there can be, or of length 0 where there is none
};

// Stream `index` of the job.
NCA_FN void filter(const Team& team, const Filter& job, uint32_t index, uint8_t* shared) {
  const StreamMemory memory(shared, job.length);
  team.phase([&](int lane) {
    const uint16_t* tokens = job.tokens + static_cast<size_t>(index) * static_cast<size_t>(job.length);
    for (int i = lane; i < job.length + 2; i += WARP) memory.word[i] = i < job.length ? tokens[i] : 0;
    for (int s = lane; s < NUM_SYMBOLS; s += WARP) memory.count[s] = 0;
  });
  StreamParse stream(team, memory, job.length);
  const int8_t verdict = stream.parse() ? stream.verdict(job.low, job.high, job.times_log) : UNDECIDED;
  team.phase([&](int lane) {
    if (lane == 0) job.verdict[index] = verdict;
  });
}

}  // namespace cuda
}  // namespace nca
