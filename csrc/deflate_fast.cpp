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
constexpr int SLACK = MAX_MATCH + 8;     // bytes that may be read behind the end; they decide nothing

// Families of three bytes with two zeros.
constexpr int FIRST_SET = 0, LAST_SET = 256, MIDDLE_SET = 512, NUM_THREES = 768;

template <class T>
T load(const uint8_t* from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

// Equal leading bytes of a and b, at most `most`; reads up to seven bytes further.
int equal_bytes(const uint8_t* a, const uint8_t* b, int most) {
  for (int n = 0; n < most; n += 8) {
    const uint64_t different = load<uint64_t>(a + n) ^ load<uint64_t>(b + n);
    if (different) return std::min(n + __builtin_ctzll(different) / 8, most);
  }
  return most;
}

// What equal leading bytes of two packed streams mean in bytes of tokens: (low, high) stands for (low, high, 0, 0).
int unpacked(int equal) { return 4 * (equal / 2) + equal % 2; }

int whole_bytes(int bits) { return (3 + bits + 7) / 8; }

int gzip_bytes_of(const BlockCounts& counts, int bytes) {
  const int coded = whole_bytes(std::min(static_bits(counts), dynamic_bits(counts)));
  return HEADER_AND_TRAILER_BYTES + (bytes + 4 <= coded ? bytes + STORED_HEADER_BYTES : coded);
}

}  // namespace

DeflateFast::DeflateFast()
    : packed_(2 * MAX_TOKENS + SLACK), buffer_(4 * MAX_TOKENS + SLACK), same_word_(MAX_TOKENS + 1),
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

// zlib's lazy choice: a match waits for the next byte's, and is taken unless that is longer.
bool DeflateFast::parse(const uint16_t* tokens, int count) {
  read(tokens, count);
  counts_.clear();
  Match before = {2, 0};
  bool waiting = false;
  for (int position = 0; position < bytes_;) {
    Match here = {2, 0};
    if (bytes_ - position >= SHORTEST_MATCH && before.length < MAX_MATCH) {
      here = longest(position, before.length);
      if (before.length >= GOOD_LENGTH && here.length > before.length && gives_up(position, here.distance)) return false;
    }
    if (before.length >= SHORTEST_MATCH && here.length <= before.length) {
      counts_.add_match(before.length, before.distance);
      position += before.length - 1;
      waiting = false;
      before = {2, 0};
    } else {
      if (waiting) counts_.add_literal(buffer_[static_cast<size_t>(position - 1)]);
      waiting = true;
      before = here;
      ++position;
    }
  }
  if (waiting) counts_.add_literal(buffer_[static_cast<size_t>(bytes_ - 1)]);
  return true;
}

// Fills both forms of the stream and the chains. zlib never matches position 0, so it is on no chain.
void DeflateFast::read(const uint16_t* tokens, int count) {
  count_ = count;
  bytes_ = 4 * count;
  shared_word_ = 0;
  for (int w = 0; w < count; ++w) {
    const uint32_t token = tokens[w];
    packed_[2 * w] = static_cast<uint8_t>(token);
    packed_[2 * w + 1] = static_cast<uint8_t>(token >> 8);
    memcpy(&buffer_[4 * w], &packed_[2 * w], 2);
    memset(&buffer_[4 * w + 2], 0, 2);
  }
  const auto quad = [&](int w) { return high(w - 1) << 8 | low(w); };
  for (int w = 0; w < count; ++w) {
    const bool zero = has_zero(w);
    if (w > 0) {
      uint16_t& word = last_word_[tokens[w]];
      same_word_[w] = word;
      word = static_cast<uint16_t>(w);
      uint16_t& four = last_quad_[quad(w)];
      same_quad_[w] = four;
      four = static_cast<uint16_t>(w);
      link_byte(4 * w - 2);
      if (zero) link_byte(4 * w - 1), link_byte(4 * w);
    }
    link_byte(4 * w + 1);
  }
  for (int w = 1; w < count; ++w) last_word_[tokens[w]] = last_quad_[quad(w)] = 0;
  std::fill(last_three_.begin(), last_three_.end(), 0);
}

// Called in order of positions, for every position whose three bytes hold two zeros.
void DeflateFast::link_byte(int position) {
  const uint8_t *three = &buffer_[position];
  const int family = three[0] ? FIRST_SET : three[1] ? MIDDLE_SET : three[2] ? LAST_SET : FIRST_SET;
  uint16_t& last = last_three_[family + (three[0] | three[1] | three[2])];
  same_three_[position] = last;
  last = static_cast<uint16_t>(position);
}

// The longest match that starts at `position`, the nearest of several; one no longer than `floor` may be left out.
//
// Two places of different remainders by 4 agree in three bytes only if those hold two zeros, for each byte is a zero of
// one of the two. A position is either on the chain of such threes (any remainder), or its three bytes hold both bytes
// of a token, neither of them zero, and it matches at whole tokens only. Positions before and after a high byte are
// always on the chain: where the bytes around are not zero, all longer matches are at whole tokens, and a match of
// three is the chain's first.
DeflateFast::Match DeflateFast::longest(int position, int floor) {
  const int part = position & 3, word = (position + 3) >> 2;  // the token that begins here or next
  const bool more = word < count_;
  if (part == 1 ? high(word - 1) == 0 || (more && low(word) == 0) : has_zero(word)) return walk(position, floor);
  Match match = {0, 0};
  if (part == 1) {
    if (more && same_quad_[word]) match = longest_words(same_quad_.data(), word, 128);
  } else if (same_word_[word]) {
    match = shared_words(word, part == 2 ? 128 : part == 3 ? 129 : 130);
  }
  if (match.length > 0) return {std::min(match.length + (4 - part) % 4, MAX_MATCH), match.distance};
  if (part == 0 || part == 3 || same_three_[position] == 0) return {2, 0};
  return {SHORTEST_MATCH, position - same_three_[position]};
}

// Of the chain's candidates the nearest of those that agree longest from `word` on, or the first that agrees in
// `enough` packed bytes or to the end.
DeflateFast::Match DeflateFast::longest_words(const uint16_t* chain, int word, int enough) const {
  const uint8_t* here = &packed_[2 * word];
  enough = std::min(enough, 2 * (count_ - word));
  int best = 0, source = 0;
  for (int candidate = chain[word]; candidate; candidate = chain[candidate]) {
    const uint8_t* there = &packed_[2 * candidate];
    if (there[best] != here[best]) continue;
    const int equal = equal_bytes(here, there, enough);
    if (equal <= best) continue;
    best = equal;
    source = candidate;
    if (best >= enough) break;
  }
  return {unpacked(best), 4 * (word - source)};
}

// Three positions ask for the matches of one word; what they call enough differs.
DeflateFast::Match DeflateFast::shared_words(int word, int enough) {
  if (shared_word_ != word || shared_.length >= unpacked(128)) {
    shared_ = longest_words(same_word_.data(), word, enough);
    shared_word_ = word;
  }
  return shared_;
}

DeflateFast::Match DeflateFast::walk(int position, int floor) const {
  const uint8_t* here = &buffer_[position];
  const int enough = std::min(MAX_MATCH, bytes_ - position);
  Match match = {floor, 0};
  if (floor >= enough) return match;
  for (int candidate = same_three_[position]; candidate; candidate = same_three_[candidate]) {
    const uint8_t* there = &buffer_[candidate];
    if (there[match.length] != here[match.length]) continue;
    const int equal = equal_bytes(here, there, enough);
    if (equal <= match.length) continue;
    match = {equal, position - candidate};
    if (equal >= enough) break;
  }
  return match;
}

// Whether zlib's search at `position`, after a long match, ends before it comes to the match found here. Its chains join
// all positions with one hash of three bytes, so no nearer match is ever out of its reach.
bool DeflateFast::gives_up(int position, int distance) const {
  if (distance <= GOOD_CANDIDATES) return false;
  const auto hash = [](const uint8_t* three) { return (three[0] << 10 ^ three[1] << 5 ^ three[2]) & 0x7FFF; };
  const int wanted = hash(&buffer_[position]);
  int candidates = 0;
  for (int i = position - distance; i < position; ++i) candidates += hash(&buffer_[i]) == wanted;
  return candidates > GOOD_CANDIDATES;
}

}  // namespace nca
