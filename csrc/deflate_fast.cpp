#include "deflate_fast.h"

#include <string.h>

#include <algorithm>

#include "rollout.h"

namespace nca {

namespace {

constexpr int SHORTEST_MATCH = 3;
constexpr int GOOD_LENGTH = 32;          // after a match of this length a search gives up early,
constexpr int GOOD_CANDIDATES = 1024;    // after so many candidates
constexpr int HEADER_AND_TRAILER_BYTES = 10 + 8;
constexpr int STORED_HEADER_BYTES = 1 + 4;
constexpr int FRONT = 8;                 // bytes that may be read before the beginning, and
constexpr int SLACK = MAX_MATCH + 8;     // bytes that may be read behind the end; they decide nothing

// Families of three bytes with two zeros, each 256 wide; three zeros are number 0.
constexpr uint32_t FIRST_SET = 0, LAST_SET = 256, MIDDLE_SET = 512, NUM_THREES = 768;

template <class T>
T load(const uint8_t* from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store(uint8_t* to, T value) {  // little-endian processors only, as for the datasets
  memcpy(to, &value, sizeof value);
}

// Equal leading bytes of a and b, at most `most`; reads up to seven bytes further.
int equal_bytes(const uint8_t* a, const uint8_t* b, int most) {
  for (int n = 0; n < most; n += 8) {
    const uint64_t different = load<uint64_t>(a + n) ^ load<uint64_t>(b + n);
    if (different) return std::min(n + __builtin_ctzll(different) / 8, most);
  }
  return most;
}

// Whether another place may agree with `here` in more than `length` bytes: it must in the last eight of those.
struct LongerThan {
  LongerThan(const uint8_t* here, int length)
      : offset(length - 7), ignored(length < 7 ? 8 * (7 - length) : 0),
        wanted(load<uint64_t>(here + offset) >> ignored) {}
  bool possible(const uint8_t* there) const { return load<uint64_t>(there + offset) >> ignored == wanted; }

  int offset, ignored;
  uint64_t wanted;
};

// What equal leading bytes of two packed streams mean in bytes of tokens: (low, high) stands for (low, high, 0, 0).
int unpacked(int equal) { return 4 * (equal / 2) + equal % 2; }

// The least number of equal packed bytes that gives at least `length`.
int packed(int length) {
  if (length <= 0) return 0;
  return 2 * (length / 4) + (length % 4 == 0 ? 0 : length % 4 == 1 ? 1 : 2);
}

int whole_bytes(int bits) { return (3 + bits + 7) / 8; }

int gzip_bytes_of(const BlockCounts& counts, int bytes) {
  const int coded = whole_bytes(std::min(static_bits(counts), dynamic_bits(counts)));
  return HEADER_AND_TRAILER_BYTES + (bytes + 4 <= coded ? bytes + STORED_HEADER_BYTES : coded);
}

}  // namespace

inline uint8_t DeflateFast::byte(int position) const { return buffer_[static_cast<size_t>(FRONT + position)]; }

DeflateFast::DeflateFast()
    : packed_(FRONT + 2 * MAX_TOKENS + SLACK), buffer_(FRONT + 4 * MAX_TOKENS + SLACK), same_word_(MAX_TOKENS + 1),
      same_quad_(MAX_TOKENS + 1), same_three_(4 * MAX_TOKENS), last_word_(1 << 16), last_quad_(1 << 16),
      last_three_(NUM_THREES) {}

bool DeflateFast::covers(const Params& params) {
  if (params.score_token_bytes != 4 || params.score_bytes() > 4 * MAX_TOKENS) return false;
  int64_t tokens = 1;
  for (int i = 0; i < params.patch * params.patch && tokens <= 1 << 16; ++i) tokens *= params.num_states;
  return tokens + (params.score_delimiters ? 2 : 0) <= 1 << 16;
}

int DeflateFast::gzip_bytes(const uint16_t* tokens, int count) {
  return parse(tokens, count) ? gzip_bytes_of(counts_, bytes_) : UNKNOWN;
}

// zlib takes a dynamic block only where it is shorter than the static one, and a stored one only where its bytes and
// four are no more than both; below that the size lies between the two bounds.
int DeflateFast::accept(const uint16_t* tokens, int count, int64_t low, int64_t high) {
  if (!parse(tokens, count)) return UNKNOWN;
  const int most = whole_bytes(static_bits(counts_));
  if (most < bytes_ + 4) {
    const int upper = HEADER_AND_TRAILER_BYTES + most;
    if (upper <= low) return 0;
    const int lower = std::min(upper, HEADER_AND_TRAILER_BYTES + whole_bytes(least_dynamic_bits(counts_)));
    if (lower >= high) return 0;
    if (lower > low && upper < high) return 1;
  }
  const int size = gzip_bytes_of(counts_, bytes_);
  return low < size && size < high;
}

// One round goes through the four bytes of a token, from the one that the last match left next; each kind of byte has
// its own code, for the sake of branch prediction.
bool DeflateFast::parse(const uint16_t* tokens, int count) {
  read(tokens, count);
  counts_.clear();
  Cursor at = {0, {2, 0}, false, true};
  while (at.position < bytes_ && at.known) {
    switch (at.position & 3) {
      case 0:
        if (!advance<0>(at)) break;
        [[fallthrough]];
      case 1:
        if (!advance<1>(at)) break;
        [[fallthrough]];
      case 2:
        if (!advance<2>(at)) break;
        [[fallthrough]];
      default:
        advance<3>(at);
    }
  }
  if (at.waiting) counts_.add_literal(byte(bytes_ - 1));
  return at.known;
}

// zlib's lazy choice: a match waits for the next byte's, and is taken unless that is longer. Returns whether the
// cursor now stands at the next byte.
template <int PART>
inline __attribute__((always_inline)) bool DeflateFast::advance(Cursor& at) {
  const bool room = PART < 2 || bytes_ - at.position >= SHORTEST_MATCH;
  const Match here = room && at.before.length < MAX_MATCH ? longest<PART>(at.position, at.before.length) : Match{2, 0};
  if (at.before.length >= SHORTEST_MATCH && here.length <= at.before.length) {
    counts_.add_match(at.before.length, at.before.distance);
    at.position += at.before.length - 1;
    at.before = {2, 0};
    at.waiting = false;
    return false;
  }
  if (at.before.length >= GOOD_LENGTH && gives_up(at.position, here.distance)) {
    at.known = false;
    return false;
  }
  if (at.waiting) counts_.add_literal(byte(at.position - 1));
  at.before = here;
  at.waiting = true;
  ++at.position;
  return true;
}

// Fills both forms of the stream and the chains. zlib never matches position 0, so it is on no chain.
void DeflateFast::read(const uint16_t* tokens, int count) {
  count_ = count;
  bytes_ = 4 * count;
  shared_word_ = 0;
  uint8_t *packed = packed_.data() + FRONT, *buffer = buffer_.data() + FRONT;
  for (int w = 0; w < count; ++w) {
    const uint32_t token = tokens[w];
    store(packed + 2 * w, static_cast<uint16_t>(token));
    store(buffer + 4 * w, token);
  }
  uint16_t *last_word = last_word_.data(), *last_quad = last_quad_.data(), *last_three = last_three_.data();
  uint16_t *same_word = same_word_.data(), *same_quad = same_quad_.data(), *same_three = same_three_.data();
  const auto link = [&](int position, uint32_t three) {
    same_three[position] = last_three[three];
    last_three[three] = static_cast<uint16_t>(position);
  };
  uint32_t before = 0;  // the high byte of the word before
  for (int w = 0; w < count; ++w) {
    const uint32_t token = tokens[w], low = token & 0xFF, high = token >> 8;
    if (w > 0) {
      const uint32_t quad = before << 8 | low;
      same_word[w] = last_word[token];
      last_word[token] = static_cast<uint16_t>(w);
      same_quad[w] = last_quad[quad];
      last_quad[quad] = static_cast<uint16_t>(w);
      link(4 * w - 2, low ? LAST_SET + low : 0);  // 0, 0, low
      if (low == 0 || high == 0) {
        link(4 * w - 1, low ? MIDDLE_SET + low : high ? LAST_SET + high : 0);  // 0, low, high
        link(4 * w, high ? MIDDLE_SET + high : FIRST_SET + low);               // low, high, 0
      }
    }
    link(4 * w + 1, FIRST_SET + high);  // high, 0, 0
    before = high;
  }
  for (int w = 1; w < count; ++w) {
    last_word[tokens[w]] = 0;
    last_quad[(tokens[w - 1] & 0xFF00) | (tokens[w] & 0xFF)] = 0;
  }
  memset(last_three, 0, NUM_THREES * sizeof *last_three);
}

// The longest match that starts at `position`, the nearest of several; one no longer than `floor` may be left out.
//
// Two places of different remainders by 4 agree in three bytes only if those hold two zeros, for each byte is a zero of
// one of the two. A position is either on the chain of such threes (any remainder), or its three bytes hold both bytes
// of a token, neither of them zero, and it matches at whole tokens only. Positions before and after a high byte are
// always on the chain: where the bytes around are not zero, all longer matches are at whole tokens, and a match of
// three is the chain's first.
template <int PART>
inline __attribute__((always_inline)) DeflateFast::Match DeflateFast::longest(int position, int floor) {
  constexpr int LEAD = (4 - PART) % 4;  // bytes before `word`, the token that begins here or next
  const int word = (position + LEAD) >> 2;
  const bool more = PART != 1 || word < count_;
  const bool zero = PART == 1 ? byte(position) == 0 || (more && byte(position + 3) == 0)
                              : byte(position + LEAD) == 0 || byte(position + LEAD + 1) == 0;
  if (zero) return same_three_[position] ? walk(position, floor) : Match{2, 0};
  if (PART == 1) {
    if (more && same_quad_[word]) return longest_words(same_quad_.data(), word, LEAD, floor);
  } else if (same_word_[word]) {
    if (shared_word_ == word) return {shared_.length + LEAD, shared_.distance};
    const Match match = longest_words(same_word_.data(), word, LEAD, floor);
    if (match.distance && match.length < MAX_MATCH - 3) {
      shared_word_ = word;
      shared_ = {match.length - LEAD, match.distance};
    }
    return match;
  }
  if (PART == 0 || PART == 3 || same_three_[position] == 0) return {2, 0};
  return {SHORTEST_MATCH, position - same_three_[position]};
}

// The longest match that begins `lead` bytes before `word`: of the chain's candidates the nearest of those that agree
// longest from there on, or the first that makes the longest match there can be.
DeflateFast::Match DeflateFast::longest_words(const uint16_t* chain, int word, int lead, int floor) const {
  const uint8_t* words = packed_.data() + FRONT;
  const uint8_t* here = words + 2 * word;
  const int enough = std::min(packed(MAX_MATCH - lead), 2 * (count_ - word));
  int best = std::max(packed(floor + 1 - lead) - 1, 0), source = 0;
  if (best >= enough) return {2, 0};
  LongerThan longer(here, best);
  for (int candidate = chain[word]; candidate; candidate = chain[candidate]) {
    const uint8_t* there = words + 2 * candidate;
    if (!longer.possible(there)) continue;
    const int equal = equal_bytes(here, there, enough);
    if (equal <= best) continue;
    best = equal;
    source = candidate;
    if (best >= enough) break;
    longer = LongerThan(here, best);
  }
  if (source == 0) return {2, 0};
  return {std::min(unpacked(best) + lead, MAX_MATCH), 4 * (word - source)};
}

// At the bytes of a chain, whose candidates all agree in three.
DeflateFast::Match DeflateFast::walk(int position, int floor) const {
  const uint8_t* bytes = buffer_.data() + FRONT;
  const uint8_t* here = bytes + position;
  const int enough = std::min(MAX_MATCH, bytes_ - position);
  if (floor >= enough) return {2, 0};
  Match match = {floor, 0};
  LongerThan longer(here, floor);
  for (int candidate = same_three_[position]; candidate; candidate = same_three_[candidate]) {
    const uint8_t* there = bytes + candidate;
    if (!longer.possible(there)) continue;
    const int equal = equal_bytes(here, there, enough);
    if (equal <= match.length) continue;
    match = {equal, position - candidate};
    if (equal >= enough) break;
    longer = LongerThan(here, equal);
  }
  return match.distance ? match : Match{2, 0};
}

// Whether zlib's search at `position`, after a long match, ends before it comes to the match found here. Its chains
// join all positions with one hash of three bytes. What it sees before it gives up holds no better match, and where
// nothing is found here, nothing is there.
bool DeflateFast::gives_up(int position, int distance) const {
  if (distance <= GOOD_CANDIDATES) return false;
  const auto hash = [](const uint8_t* three) { return (three[0] << 10 ^ three[1] << 5 ^ three[2]) & 0x7FFF; };
  const int wanted = hash(buffer_.data() + FRONT + position);
  int candidates = 0;
  for (int i = position - distance; i < position; ++i) candidates += hash(buffer_.data() + FRONT + i) == wanted;
  return candidates > GOOD_CANDIDATES;
}

}  // namespace nca
