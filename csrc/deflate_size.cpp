#include "deflate_size.h"

#include <zlib.h>

#include <stdexcept>
#include <string>

namespace nca {

namespace {

constexpr int LEVEL = 9;
constexpr int RAW_WINDOW_BITS = -15;
constexpr int MEMORY_LEVEL = 8;
constexpr int64_t HEADER_AND_TRAILER_BYTES = 10 + 8;
constexpr size_t LARGEST_PIECE = size_t{1} << 30;  // zlib counts in 32 bits

void check(int code, int expected, const char* call) {
  if (code != expected) throw std::runtime_error(std::string("zlib: ") + call + " returned " + std::to_string(code));
}

}  // namespace

struct DeflateSize::State {
  z_stream stream{};
  std::vector<uint8_t> sink = std::vector<uint8_t>(1 << 14);  // the output is counted and overwritten
};

DeflateSize::DeflateSize() : state_(std::make_unique<State>()) {
  check(deflateInit2(&state_->stream, LEVEL, Z_DEFLATED, RAW_WINDOW_BITS, MEMORY_LEVEL, Z_DEFAULT_STRATEGY), Z_OK,
        "deflateInit2");
}

DeflateSize::~DeflateSize() { deflateEnd(&state_->stream); }

int64_t DeflateSize::gzip_bytes(const uint8_t* data, size_t length) {
  z_stream& stream = state_->stream;
  check(deflateReset(&stream), Z_OK, "deflateReset");
  int64_t size = HEADER_AND_TRAILER_BYTES;
  const auto drain = [&](int flush) {
    int code;
    do {
      stream.next_out = state_->sink.data();
      stream.avail_out = static_cast<uInt>(state_->sink.size());
      code = deflate(&stream, flush);
      size += static_cast<int64_t>(state_->sink.size()) - stream.avail_out;
    } while (stream.avail_out == 0);
    return code;
  };
  // As Python does it: all input without a flush, then the finish.
  for (size_t done = 0; done < length;) {
    const size_t piece = length - done < LARGEST_PIECE ? length - done : LARGEST_PIECE;
    stream.next_in = const_cast<Bytef*>(data + done);
    stream.avail_in = static_cast<uInt>(piece);
    drain(Z_NO_FLUSH);
    done += piece;
  }
  stream.avail_in = 0;
  check(drain(Z_FINISH), Z_STREAM_END, "deflate");
  return size;
}

}  // namespace nca
