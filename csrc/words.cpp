#include "words.h"

#include <algorithm>

namespace nca {

namespace {

constexpr size_t kFirstSlots = 1 << 16;
constexpr size_t kMostCharacters = 1 << 24;  // 64 MB of words, most of them too long to be found again

template <typename Character>
uint64_t hash_of(const Character* word, size_t length) {
  uint64_t hash = length;
  for (size_t i = 0; i < length; ++i) {
    hash = (hash ^ static_cast<uint64_t>(word[i])) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

WordMemory::WordMemory(std::vector<uint8_t> kinds, Cut cut, size_t most_words, size_t longest)
    : kinds_(std::move(kinds)), cut_(cut), most_words_(most_words), longest_(longest) {
  forget();
}

void WordMemory::forget() {
  slots_.assign(kFirstSlots, 0);
  words_.clear();
  characters_.clear();
  tokens_.clear();
  characters_.shrink_to_fit();
  tokens_.shrink_to_fit();
  learned_ = 0;
}

void WordMemory::begin() {
  batch_.clear();
  text_ends_.clear();
  if (words_.size() > most_words_ || characters_.size() > kMostCharacters) forget();
}

void WordMemory::grow() {
  slots_.assign(slots_.size() * 2, 0);
  const size_t mask = slots_.size() - 1;
  for (size_t index = 0; index < words_.size(); ++index) {
    if (words_[index].characters > longest_) continue;
    size_t slot = words_[index].hash & mask;
    while (slots_[slot] != 0) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<uint32_t>(index + 1);
  }
}

template <typename Character>
uint32_t WordMemory::find(const Character* word, size_t length) {
  const uint64_t hash = length <= longest_ ? hash_of(word, length) : 0;
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  if (length <= longest_) {
    for (; slots_[slot] != 0; slot = (slot + 1) & mask) {
      const Word& known = words_[slots_[slot] - 1];
      if (known.hash == hash && known.characters == length &&
          std::equal(word, word + length, characters_.data() + known.first_character,
                     [](Character one, char32_t other) { return static_cast<char32_t>(one) == other; })) {
        return slots_[slot] - 1;
      }
    }
  }
  const auto index = static_cast<uint32_t>(words_.size());
  words_.push_back({hash, characters_.size(), 0, static_cast<uint32_t>(length), 0});
  characters_.append(word, word + length);
  if (length <= longest_) {
    slots_[slot] = index + 1;
    if (2 * words_.size() > slots_.size()) grow();
  }
  return index;
}

template <typename Character>
size_t WordMemory::end_of_word(const Character* text, size_t start, size_t length) const {
  const auto kind = [&](size_t at) { return kinds_[static_cast<uint32_t>(text[at])]; };
  size_t end = start;
  if (cut_ == Cut::kSpacesLead) {
    while (end < length && kind(end) == 0) ++end;
    if (end == length) return end;
    for (const uint8_t first = kind(end); end < length && kind(end) == first;) ++end;
    return end;
  }
  if (text[start] == '\'' && start + 1 < length) {
    const auto one = text[start + 1];
    if (one == 's' || one == 'd' || one == 'm' || one == 't') return start + 2;
    if (start + 2 < length) {
      const auto two = text[start + 2];
      if ((one == 'l' && two == 'l') || ((one == 'v' || one == 'r') && two == 'e')) return start + 3;
    }
  }
  if (text[end] == ' ') ++end;
  if (end < length && kind(end) != 0) {
    for (const uint8_t first = kind(end); end < length && kind(end) == first;) ++end;
    return end;
  }
  while (end < length && kind(end) == 0) ++end;
  // White space before a word leaves it the last of its characters.
  return end < length && end - start > 1 ? end - 1 : end;
}

template <typename Character>
void WordMemory::add(const Character* text, size_t length) {
  for (size_t start = 0; start < length;) {
    const size_t end = end_of_word(text, start, length);
    batch_.push_back(find(text + start, end - start));
    start = end;
  }
  text_ends_.push_back(batch_.size());
}

std::vector<std::u32string_view> WordMemory::unknown() const {
  std::vector<std::u32string_view> found;
  for (size_t index = learned_; index < words_.size(); ++index) {
    found.emplace_back(characters_.data() + words_[index].first_character, words_[index].characters);
  }
  return found;
}

void WordMemory::learn(const std::vector<int32_t>& tokens) {
  Word& word = words_[learned_++];
  word.first_token = tokens_.size();
  word.tokens = static_cast<uint32_t>(tokens.size());
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
}

const std::vector<size_t>& WordMemory::counts() {
  counts_.clear();
  size_t at = 0;
  for (const size_t end : text_ends_) {
    size_t count = 0;
    for (; at < end; ++at) count += words_[batch_[at]].tokens;
    counts_.push_back(count);
  }
  return counts_;
}

void WordMemory::write(int32_t* tokens) const {
  for (const uint32_t index : batch_) {
    const Word& word = words_[index];
    tokens = std::copy_n(tokens_.data() + word.first_token, word.tokens, tokens);
  }
}

template void WordMemory::add(const uint8_t*, size_t);
template void WordMemory::add(const uint16_t*, size_t);
template void WordMemory::add(const uint32_t*, size_t);

}  // namespace nca
