// How many bytes gzip at level 9 makes of a buffer.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <vector>

namespace nca {

// One per thread; keeps zlib's state between calls.
class DeflateSize {
 public:
  DeflateSize();
  ~DeflateSize();
  DeflateSize(const DeflateSize&) = delete;
  DeflateSize& operator=(const DeflateSize&) = delete;

  // Size of the file that Python's gzip.GzipFile(compresslevel=9) without a name writes in one write: raw deflate
  // (window 2^15, memory level 8) and 18 bytes of header and trailer. Throws std::runtime_error if zlib fails.
  int64_t gzip_bytes(const uint8_t* data, size_t length);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nca
