// Texts cut into words, and the tokens of words remembered: what of byte-pair encoding does not need the merges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nca {

enum class Cut {
  kSpacesLead,  // a run of spaces, then a run of characters of one kind; kind 0 is a space
  kGpt2,        // GPT-2's pattern; kinds: 0 white space, 1 letter, 2 number, 3 other
};

class WordMemory {
 public:
  // kinds: one for each code point. Words longer than `longest` are never found again.
  WordMemory(std::vector<uint8_t> kinds, Cut cut, size_t most_words, size_t longest);

  // Begin a batch; forgets all if more than `most_words`, or what takes too much memory, are known.
  void begin();
  // Cut one more text of the batch, of 1, 2 or 4 bytes a character.
  template <typename Character>
  void add(const Character* text, size_t length);
  // Words of the batch that have no tokens yet, in the order in which `learn` wants their tokens.
  std::vector<std::u32string_view> unknown() const;
  void learn(const std::vector<int32_t>& tokens);

  // Tokens of each text of the batch, and of all of them.
  const std::vector<size_t>& counts();
  void write(int32_t* tokens) const;

 private:
  struct Word {
    uint64_t hash;
    size_t first_character, first_token;
    uint32_t characters, tokens;
  };

  template <typename Character>
  size_t end_of_word(const Character* text, size_t start, size_t length) const;
  template <typename Character>
  uint32_t find(const Character* word, size_t length);
  void grow();
  void forget();

  std::vector<uint8_t> kinds_;
  Cut cut_;
  size_t most_words_, longest_;
  std::vector<uint32_t> slots_;  // index of a word + 1, or 0
  std::vector<Word> words_;
  std::u32string characters_;
  std::vector<int32_t> tokens_;
  size_t learned_ = 0;
  std::vector<uint32_t> batch_;     // words of the batch, text after text
  std::vector<size_t> text_ends_;   // in batch_
  std::vector<size_t> counts_;
};

}  // namespace nca
