#include "deflate_fast.h"

#include <limits.h>
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
constexpr int END_BITS = 7;              // of the end of a block, in the static code
constexpr int MOST_MATCH_BITS = 8 + 5 + 5 + 10;
constexpr int NEVER_ENOUGH = -1;

uint64_t load(const uint8_t* from) {
  uint64_t value;
  memcpy(&value, from, sizeof value);
  return value;
}

// Equal leading bytes of a and b, at most `most`; reads up to seven bytes further.
int equal_bytes(const uint8_t* a, const uint8_t* b, int most) {
  for (int n = 0; n < most; n += 8) {
    const uint64_t different = load(a + n) ^ load(b + n);
    if (different) return std::min(n + __builtin_ctzll(different) / 8, most);
  }
  return most;
}

// Whether another place may agree with `here` in more than `length` bytes: it must in the last eight of those.
struct LongerThan {
  LongerThan(const uint8_t* here, int length)
      : offset(length - 7), ignored(length < 7 ? 8 * (7 - length) : 0),
        wanted(load(here + offset) >> ignored) {}
  bool possible(const uint8_t* there) const { return load(there + offset) >> ignored == wanted; }

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

// The most bits in so many bytes.
int most_bits(int64_t bytes) { return static_cast<int>(8 * std::max<int64_t>(bytes, 0) - 3); }

int gzip_bytes_of(const BlockCounts& counts, int bytes) {
  const int coded = whole_bytes(std::min(static_bits(counts), dynamic_bits(counts)));
  return HEADER_AND_TRAILER_BYTES + (bytes + 4 <= coded ? bytes + STORED_HEADER_BYTES : coded);
}

}  // namespace

DeflateFast::DeflateFast() : chains_(std::make_unique<TokenChains>()) {}

inline uint8_t DeflateFast::byte(int position) const { return chains_->bytes()[position]; }

bool DeflateFast::covers(const Params& params) {
  if (params.score_token_bytes != 4 || params.score_bytes() > 4 * MAX_TOKENS) return false;
  int64_t tokens = 1;
  for (int i = 0; i < params.patch * params.patch && tokens <= 1 << 16; ++i) tokens *= params.num_states;
  return tokens + (params.score_delimiters ? 2 : 0) <= 1 << 16;
}

int DeflateFast::gzip_bytes(const uint16_t* tokens, int count) {
  begin(tokens, count);
  return parse(NEVER_ENOUGH) == WHOLE ? gzip_bytes_of(counts_, bytes_) : UNKNOWN;
}

// zlib takes a dynamic block only where it is shorter than the static one, and a stored one only where its bytes and
// four are no more than both; below that the size lies between the two bounds.
int DeflateFast::accept(const uint16_t* tokens, int count, int64_t low, int64_t high) {
  begin(tokens, count);
  const int enough = most_bits(std::min<int64_t>(low - HEADER_AND_TRAILER_BYTES, bytes_ + 3));
  if (most_static_bits_by_period() <= enough) return 0;
  const Parsed parsed = parse(enough);
  if (parsed != WHOLE) return parsed == ENOUGH ? 0 : UNKNOWN;
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

void DeflateFast::begin(const uint16_t* tokens, int count) {
  tokens_ = tokens;
  count_ = count;
  bytes_ = 4 * count;
  shared_word_ = 0;
  counts_.clear();
}

// No match needs more bits of the static code than the bytes that it covers need as literals, which is no less than 8
// each: up to ten bytes, 7 and, for the distance, 5 and at most 10 extra, in all 22 < 3 * 8; beyond, one bit more and
// at most five extra, 28 < 11 * 8. So these are the most bits for words first .. last - 1, whatever zlib finds.
int DeflateFast::literal_bits(int first, int last) const {
  const uint8_t* packed = reinterpret_cast<const uint8_t*>(tokens_);
  int longer = 0;
  for (int i = 2 * first; i < 2 * last; ++i) longer += packed[i] >= 144;
  return 32 * (last - first) + longer;
}

// Where from some word on each is the one `period` before, as when an automaton stands still or goes round. Let R bytes
// be left at a place there. zlib finds a match of at least min(R, 258) bytes, since the one a period before has that
// length and is among the first 1,024 candidates. It puts none off for a longer one at the next byte: 258 bytes are
// enough for it, and a match of R > the next byte's R. So it makes R / 258 matches of 258 bytes, of at most 8 + 5 + 10
// bits, and then a match of at most 28 bits, or at most two literals. A match that began earlier and reaches in is
// one more; all else before costs no more than its literals.
int DeflateFast::most_static_bits_by_period() const {
  constexpr int LONGEST_PERIOD = 128, SAMPLE = 32;
  const uint16_t* end = tokens_ + count_;
  for (int period = 1; period <= std::min(LONGEST_PERIOD, count_ - SAMPLE - 1); ++period) {
    if (memcmp(end - SAMPLE, end - SAMPLE - period, SAMPLE * sizeof *end) != 0) continue;
    int first = count_ - SAMPLE;
    while (first > period + 1 && tokens_[first - 1] == tokens_[first - 1 - period]) --first;
    const int whole_matches = 4 * (count_ - first) / MAX_MATCH;
    return END_BITS + literal_bits(0, first) + whole_matches * (8 + 5 + 10) + 2 * MOST_MATCH_BITS;
  }
  return INT_MAX;
}

// One round goes through the four bytes of a token, from the one that the last match left next; each kind of byte has
// its own code, for the sake of branch prediction. Ends early where the static code is known to need no more than
// `enough` bits.
DeflateFast::Parsed DeflateFast::parse(int enough) {
  chains_->read(tokens_, count_);
  Cursor at = {0, {2, 0}, true};
  int look = enough > 0 ? bytes_ / 2 : bytes_;
  while (at.position < bytes_ && at.known) {
    if (at.before.length < SHORTEST_MATCH) {
      if ((at.position & 3) < 2) at.position = run_steps(at.position);
      if (at.position >= look) {
        look = next_look(at.position, enough);
        if (look <= at.position) return ENOUGH;
      }
    }
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
  counts_.literal[NO_LITERAL] = counts_.distance[NO_DISTANCE] = 0;
  return at.known ? WHOLE : LOST;
}

// At a position that no match waits for: the same if the static code needs at most `enough` bits, with literals from
// here on; else where that may be known if the rest goes as what went before, or the end if that is hardly sooner.
int DeflateFast::next_look(int position, int enough) {
  counts_.literal[NO_LITERAL] = counts_.distance[NO_DISTANCE] = 0;
  const int done = static_bits(counts_), excess = done + literal_bits(position / 4, count_) - enough;
  if (excess <= 0) return position;
  const int gained = 8 * position - done;  // against literals
  const int next = position + std::max({1, bytes_ / 16, excess * position / std::max(gained, 1)});
  return next < bytes_ - bytes_ / 16 ? next : bytes_;
}

// Goes from step to step, without a branch that depends on the data, up to the first byte that needs more.
int DeflateFast::run_steps(int position) {
  const TokenChains::Steps* steps = chains_->steps;
  const uint16_t* at = steps[position % 4].advance + position / 4;
  const auto row = [&](const uint16_t* first) { return at[first - steps[0].advance]; };
  for (int advance; (advance = static_cast<int16_t>(*at)) != 0; at += advance) {
    ++counts_.literal[row(steps[0].before)];
    ++counts_.literal[row(steps[0].match)];
    ++counts_.literal[row(steps[0].after)];
    ++counts_.distance[match_symbols.distance[row(steps[0].distance)]];
  }
  const int place = static_cast<int>(at - steps[0].advance);
  return place < TokenChains::STEPS ? 4 * place : 4 * (place - TokenChains::STEPS) + 1;
}

// zlib's lazy choice: a match waits for the next byte's, and is taken unless that is longer. Returns whether the
// cursor now stands at the next byte.
template <int PART>
inline __attribute__((always_inline)) bool DeflateFast::advance(Cursor& at) {
  const bool room = PART < 2 || bytes_ - at.position >= SHORTEST_MATCH;
  const Match here = room && at.before.length < MAX_MATCH ? longest<PART>(at.position, at.before.length) : Match{2, 0};
  if (at.before.length >= SHORTEST_MATCH) {
    if (here.length <= at.before.length) {
      counts_.add_match(at.before.length, at.before.distance);
      at.position += at.before.length - 1;
      at.before = {2, 0};
      return false;
    }
    if (at.before.length >= GOOD_LENGTH && gives_up(at.position, here.distance)) {
      at.known = false;
      return false;
    }
    counts_.add_literal(byte(at.position - 1));
  }
  if (here.length < SHORTEST_MATCH) counts_.add_literal(byte(at.position));
  at.before = here;
  ++at.position;
  return true;
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
  if (zero) return walk(position, floor);
  if (PART == 1) {
    if (more && chains_->same_quad[word]) {
      const Match match = longest_words(chains_->same_quad, word, 1, LEAD, floor);
      return match.distance ? match : Match{4, 4 * (word - chains_->same_quad[word])};
    }
  } else if (chains_->same_word[word]) {
    if (shared_word_ == word) return {shared_.length + LEAD, shared_.distance};
    const Match match = longest_words(chains_->longer, word, 0, LEAD, floor);
    if (match.distance == 0) return {4 + LEAD, 4 * (word - chains_->same_word[word])};
    if (match.length < MAX_MATCH - 3) {
      shared_word_ = word;
      shared_ = {match.length - LEAD, match.distance};
    }
    return match;
  }
  if (PART == 0 || PART == 3 || chains_->three_before(position) == 0) return {2, 0};
  return {SHORTEST_MATCH, position - chains_->three_before(position)};
}

// The longest match that begins at `word`, or at the high byte before it (`back` 1), or `lead` bytes before the former:
// of the chain's candidates the nearest of those that agree longest, if in three bytes of tokens or more, or the first
// that makes the longest match there can be.
DeflateFast::Match DeflateFast::longest_words(const uint16_t* chain, int word, int back, int lead, int floor) const {
  const uint8_t* words = reinterpret_cast<const uint8_t*>(chains_->words()) - back;
  const uint8_t* here = words + 2 * word;
  const int enough = back + std::min(packed(MAX_MATCH - lead), 2 * (count_ - word));
  int best = std::max(back + packed(floor + 1 - lead) - 1, 2), source = 0;
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
  return {std::min(unpacked(best - back) + lead, MAX_MATCH), 4 * (word - source)};
}

// Where three of the next four bytes are zeros: of the places with the same four the nearest of those that agree
// longest, else the nearest with the same three.
DeflateFast::Match DeflateFast::walk(int position, int floor) const {
  const uint8_t* bytes = chains_->bytes();
  const uint8_t* here = bytes + position;
  const int enough = std::min(MAX_MATCH, bytes_ - position);
  int best = std::max(floor, SHORTEST_MATCH), source = 0;
  if (best < enough) {
    LongerThan longer(here, best);
    for (int candidate = chains_->four_before(position); candidate; candidate = chains_->four_before(candidate)) {
      const uint8_t* there = bytes + candidate;
      if (!longer.possible(there)) continue;
      const int equal = equal_bytes(here, there, enough);
      if (equal <= best) continue;
      best = equal;
      source = candidate;
      if (equal >= enough) break;
      longer = LongerThan(here, equal);
    }
    if (source) return {best, position - source};
  }
  const int three = chains_->three_before(position);
  return three && floor < SHORTEST_MATCH ? Match{SHORTEST_MATCH, position - three} : Match{2, 0};
}

// Whether zlib's search at `position`, after a long match, ends before it comes to the match found here. Its chains
// join all positions with one hash of three bytes. What it sees before it gives up holds no better match, and where
// nothing is found here, nothing is there.
bool DeflateFast::gives_up(int position, int distance) const {
  if (distance <= GOOD_CANDIDATES) return false;
  const auto hash = [](const uint8_t* three) { return (three[0] << 10 ^ three[1] << 5 ^ three[2]) & 0x7FFF; };
  const int wanted = hash(chains_->bytes() + position);
  int candidates = 0;
  for (int i = position - distance; i < position; ++i) candidates += hash(chains_->bytes() + i) == wanted;
  return candidates > GOOD_CANDIDATES;
}

}  // namespace nca
