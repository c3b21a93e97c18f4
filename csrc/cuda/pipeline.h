// The seam of rollout.h on a device: the same functions, the same answers. Candidates go through in batches on several
// queues, so that the device rolls out one batch while the host weighs what the device could not, and copies another.
#pragma once

#include <memory>
#include <vector>

#include "../rollout.h"

namespace nca {
namespace cuda {

void score(const Params&, uint64_t seed, uint32_t first, size_t count, int32_t* gzip_bytes, const Execution&);
void accept(const Params&, uint64_t seed, uint32_t first, size_t count, int64_t low, int64_t high, uint8_t* accepted,
            const Execution&);
void documents(const Params&, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               uint16_t* tokens, const Execution&);
void documents(const Params&, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               int32_t* tokens, const Execution&);

// What the device alone says of `count` streams of `length` <= 1,024 tokens laid out as int32: 1 where
// low < gzip bytes < high, else 0; -1 where it does not know.
void accept_tokens(const uint16_t* tokens, size_t count, int length, int64_t low, int64_t high, int8_t* accepted);

// One batch of a search: which of `examined` candidates from `first` on lie in the band, and a document of each.
struct Found {
  uint32_t first = 0;
  uint32_t examined = 0;
  std::vector<uint32_t> candidates;
  std::shared_ptr<void> tokens;  // (candidates, document_tokens) in pinned memory, uint16 or int32
};

// All candidates in order, from 0 on, with low < gzip bytes < high, and repeat 0 of their documents. Works ahead.
class Search {
 public:
  // Batches are made so that about `wanted` rules are found without examining many more. Tokens are int32 if `wide`.
  Search(const Params&, uint64_t seed, int64_t low, int64_t high, uint64_t wanted, bool wide, const Execution&);
  ~Search();

  // Throws std::out_of_range behind the last of the 2^32 candidates.
  Found next();

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

}  // namespace cuda
}  // namespace nca
