#include "pipeline.h"

#include <string.h>

#include <algorithm>
#include <deque>
#include <stdexcept>

#include "memory.h"

namespace nca {
namespace cuda {

namespace {

constexpr size_t MOST_CANDIDATES = 1 << 15;   // of a batch: several for each warp that a large GPU can hold
constexpr size_t MOST_BYTES = 64 << 20;       // of a batch's tokens

size_t batch_size(size_t bytes_each) { return std::max<size_t>(1, std::min(MOST_CANDIDATES, MOST_BYTES / bytes_each)); }

bool needs_wide(const Law& law, bool delimiters) { return law.start_token + (delimiters ? 2 : 0) > 1u << 16; }

// What a stage of the pipeline works with, once per batch in flight.
struct Slot {
  uint32_t first = 0;
  size_t count = 0;
  DeviceBuffer<uint8_t> tokens;
  PinnedBuffer<uint8_t> tokens_here;
  DeviceBuffer<int8_t> verdict;
  PinnedBuffer<int8_t> verdict_here;
  DeviceBuffer<uint32_t> which;  // candidates, then repeats
  PinnedBuffer<uint32_t> which_here;
  OwnedQueue queue{make_queue()};  // last: it comes to rest before its memory goes
};

// begin(slot, batch) for every batch, and end(slot, batch) one batch later, in order.
template <class Begin, class End>
void overlap(size_t batches, Begin begin, End end) {
  Slot slots[2];
  for (size_t batch = 0; batch <= batches; ++batch) {
    if (batch < batches) begin(slots[batch % 2], batch);
    if (batch > 0) end(slots[(batch - 1) % 2], batch - 1);
  }
}

// Decides on the device what bounds can decide (filter.cuh).
class DeviceFilter {
 public:
  DeviceFilter() {
    const std::vector<uint32_t> table = times_log_table();
    PinnedBuffer<uint32_t> here;
    std::copy(table.begin(), table.end(), here.with_room(table.size()));
    const OwnedQueue queue{make_queue()};
    upload(queue.get(), times_log_.with_room(table.size()), here.get(), table.size() * sizeof table[0]);
    wait(queue.get());
  }

  // Verdicts on `count` streams of `length` tokens that a slot has on the device; they are downloaded too.
  void begin(Slot& slot, size_t count, size_t length, int64_t low, int64_t high) const {
    Filter filter{};
    filter.tokens = reinterpret_cast<const uint16_t*>(slot.tokens.get());
    filter.count = static_cast<uint32_t>(count);
    filter.length = static_cast<int>(length);
    filter.low = static_cast<int>(std::clamp<int64_t>(low, -1, 1 << 20));  // no size comes near the ends
    filter.high = static_cast<int>(std::clamp<int64_t>(high, -1, 1 << 20));
    filter.times_log = times_log_.get();
    filter.verdict = slot.verdict.with_room(count);
    run(slot.queue.get(), filter);
    download(slot.queue.get(), slot.verdict_here.with_room(count), filter.verdict, count);
  }

 private:
  DeviceBuffer<uint32_t> times_log_;
};

// Scored frames of candidates, and what gzip makes of them.
class Scoring {
 public:
  Scoring(const Params& params, uint64_t seed, const Execution& execution)
      : params_(params), covered_(covers(params)), execution_(execution) {
    job_.law = law_of(params);
    job_.seed = seed;
    job_.start_purpose = PURPOSE_SCORE_START;
    job_.noise_purpose = PURPOSE_SCORE_NOISE;
    job_.frames = params.score_frames;
    job_.delimiters = params.score_delimiters;
    job_.wide = needs_wide(job_.law, job_.delimiters);
    length_ = job_.tokens_each();
  }

  size_t batch() const { return batch_size(job_.bytes_each()); }

  // Rolls out, and brings the tokens here.
  void begin_sizes(Slot& slot) const {
    roll_out(slot);
    download(slot.queue.get(), slot.tokens_here.with_room(slot.count * job_.bytes_each()), slot.tokens.get(),
             slot.count * job_.bytes_each());
  }

  // Waits for what `begin_sizes` began.
  void end_sizes(Slot& slot, int32_t* sizes) const {
    wait(slot.queue.get());
    if (covered_) {
      const uint16_t* tokens = reinterpret_cast<const uint16_t*>(slot.tokens_here.get());
      token_gzip_sizes(tokens, slot.count, static_cast<int>(length_), sizes, execution_);
    } else {
      std::fill_n(sizes, slot.count, -1);
    }
    weigh_plainly(slot, sizes, [](int64_t size) { return static_cast<int32_t>(size); });
  }

  void begin_verdicts(Slot& slot, int64_t low, int64_t high) const {
    begin_sizes(slot);
    if (covered_) filter_.begin(slot, slot.count, length_, low, high);
  }

  // 1 or 0 of each. What the device left undecided is decided here.
  const int8_t* end_verdicts(Slot& slot, int64_t low, int64_t high) {
    wait(slot.queue.get());
    int8_t* verdict = slot.verdict_here.with_room(slot.count);
    if (covered_) {
      decide(slot, low, high, verdict);
    } else {
      std::fill_n(verdict, slot.count, UNDECIDED);
    }
    weigh_plainly(slot, verdict, [&](int64_t size) { return static_cast<int8_t>(low < size && size < high); });
    return verdict;
  }

 private:
  void roll_out(Slot& slot) const {
    Rollouts job = job_;
    job.first = slot.first;
    job.count = static_cast<uint32_t>(slot.count);
    job.tokens = slot.tokens.with_room(slot.count * job.bytes_each());
    run(slot.queue.get(), job);
  }

  void decide(const Slot& slot, int64_t low, int64_t high, int8_t* verdict) {
    const uint16_t* tokens = reinterpret_cast<const uint16_t*>(slot.tokens_here.get());
    undecided_.clear();
    gathered_.clear();
    for (size_t i = 0; i < slot.count; ++i) {
      if (verdict[i] != UNDECIDED) continue;
      undecided_.push_back(i);
      gathered_.insert(gathered_.end(), tokens + i * length_, tokens + (i + 1) * length_);
    }
    const size_t count = undecided_.size();
    decisions_.resize(count);
    accept_tokens(gathered_.data(), count, static_cast<int>(length_), low, high, decisions_.data(), execution_);
    for (size_t i = 0; i < count; ++i) verdict[undecided_[i]] = decisions_[i];
  }

  // What is still -1 goes through zlib.
  template <class T, class Answer>
  void weigh_plainly(const Slot& slot, T* answers, Answer answer) const {
    std::vector<size_t> rest;
    for (size_t i = 0; i < slot.count; ++i) {
      if (answers[i] == -1) rest.push_back(i);
    }
    const size_t bytes = length_ * static_cast<size_t>(params_.score_token_bytes);
    std::vector<uint8_t> buffers(rest.size() * bytes);
    std::vector<int64_t> sizes(rest.size());
    for (size_t i = 0; i < rest.size(); ++i) lay_out(slot, rest[i], buffers.data() + i * bytes);
    gzip_sizes(buffers.data(), rest.size(), bytes, sizes.data(), execution_);
    for (size_t i = 0; i < rest.size(); ++i) answers[rest[i]] = answer(sizes[i]);
  }

  void lay_out(const Slot& slot, size_t row, uint8_t* to) const {
    const uint8_t* tokens = slot.tokens_here.get() + row * job_.bytes_each();
    for (size_t i = 0; i < length_; ++i) {
      uint32_t token = 0;
      memcpy(&token, tokens + i * (job_.wide ? 4 : 2), job_.wide ? 4 : 2);
      for (int b = 0; b < params_.score_token_bytes; ++b) *to++ = static_cast<uint8_t>(token >> 8 * b);
    }
  }

  const Params params_;
  const bool covered_;
  const Execution execution_;
  Rollouts job_{};
  size_t length_;
  const DeviceFilter filter_;
  std::vector<size_t> undecided_;
  std::vector<uint16_t> gathered_;
  std::vector<int8_t> decisions_;
};

// Documents of the candidates that a slot lists.
class Emission {
 public:
  Emission(const Params& params, uint64_t seed, bool wide) {
    job_.law = law_of(params);
    job_.seed = seed;
    if (params.emit_scored) throw std::invalid_argument("emitted_rollout = scored: not offered on the device cuda");
    job_.start_purpose = PURPOSE_EMIT_START;
    job_.noise_purpose = PURPOSE_EMIT_NOISE;
    job_.frames = params.num_frames;
    job_.delimiters = true;
    job_.wide = wide;
  }

  size_t batch() const { return batch_size(job_.bytes_each()); }
  size_t bytes_each() const { return job_.bytes_each(); }

  // `repeats` may be null, for 0.
  void begin(Slot& slot, const uint32_t* candidates, const uint32_t* repeats, size_t count, void* pinned) const {
    if (count == 0) return;
    Rollouts job = job_;
    const size_t listed = repeats ? 2 * count : count;
    uint32_t *here = slot.which_here.with_room(listed), *there = slot.which.with_room(listed);
    std::copy_n(candidates, count, here);
    if (repeats) std::copy_n(repeats, count, here + count);
    upload(slot.queue.get(), there, here, listed * sizeof *here);
    job.count = static_cast<uint32_t>(count);
    job.candidates = there;
    job.repeats = repeats ? there + count : nullptr;
    job.tokens = slot.tokens.with_room(count * job.bytes_each());
    run(slot.queue.get(), job);
    download(slot.queue.get(), pinned, job.tokens, count * job.bytes_each());
  }

 private:
  Rollouts job_{};
};

template <class Token>
void write_documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats,
                     size_t count, Token* tokens) {
  const Emission emission(params, seed, sizeof(Token) == 4);
  const size_t size = emission.batch(), bytes = emission.bytes_each();
  const auto count_of = [&](size_t batch) { return std::min(size, count - batch * size); };
  overlap(
      (count + size - 1) / size,
      [&](Slot& slot, size_t batch) {
        emission.begin(slot, candidates + batch * size, repeats + batch * size, count_of(batch),
                       slot.tokens_here.with_room(count_of(batch) * bytes));
      },
      [&](Slot& slot, size_t batch) {
        wait(slot.queue.get());
        uint8_t* to = reinterpret_cast<uint8_t*>(tokens) + batch * size * bytes;
        memcpy(to, slot.tokens_here.get(), count_of(batch) * bytes);
      });
}

void set_range(Slot& slot, uint32_t first, size_t count, size_t batch, size_t size) {
  slot.first = first + static_cast<uint32_t>(batch * size);
  slot.count = std::min(size, count - batch * size);
}

}  // namespace

void score(const Params& params, uint64_t seed, uint32_t first, size_t count, int32_t* gzip_bytes,
           const Execution& execution) {
  const Scoring scoring(params, seed, execution);
  const size_t size = scoring.batch();
  overlap(
      (count + size - 1) / size,
      [&](Slot& slot, size_t batch) {
        set_range(slot, first, count, batch, size);
        scoring.begin_sizes(slot);
      },
      [&](Slot& slot, size_t batch) { scoring.end_sizes(slot, gzip_bytes + batch * size); });
}

void accept(const Params& params, uint64_t seed, uint32_t first, size_t count, int64_t low, int64_t high,
            uint8_t* accepted, const Execution& execution) {
  Scoring scoring(params, seed, execution);
  const size_t size = scoring.batch();
  overlap(
      (count + size - 1) / size,
      [&](Slot& slot, size_t batch) {
        set_range(slot, first, count, batch, size);
        scoring.begin_verdicts(slot, low, high);
      },
      [&](Slot& slot, size_t batch) {
        const int8_t* verdict = scoring.end_verdicts(slot, low, high);
        std::copy_n(verdict, slot.count, accepted + batch * size);
      });
}

void documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               uint16_t* tokens, const Execution&) {
  write_documents(params, seed, candidates, repeats, count, tokens);
}

void documents(const Params& params, uint64_t seed, const uint32_t* candidates, const uint32_t* repeats, size_t count,
               int32_t* tokens, const Execution&) {
  write_documents(params, seed, candidates, repeats, count, tokens);
}

void accept_tokens(const uint16_t* tokens, size_t count, int length, int64_t low, int64_t high, int8_t* accepted) {
  if (count == 0) return;
  const DeviceFilter filter;
  Slot slot;
  const size_t bytes = count * static_cast<size_t>(length) * sizeof *tokens;
  memcpy(slot.tokens_here.with_room(bytes), tokens, bytes);
  upload(slot.queue.get(), slot.tokens.with_room(bytes), slot.tokens_here.get(), bytes);
  filter.begin(slot, count, static_cast<size_t>(length), low, high);
  wait(slot.queue.get());
  std::copy_n(slot.verdict_here.get(), count, accepted);
}

// A batch is scored, then decided and emitted, then given. While one is given to the caller, the next is emitted and
// the one after that scored.
class Search::Work {
 public:
  Work(const Params& params, uint64_t seed, int64_t low, int64_t high, uint64_t wanted, bool wide,
       const Execution& execution)
      : scoring_(params, seed, execution), emission_(params, seed, wide), low_(low), high_(high),
        size_(std::min({scoring_.batch(), emission_.batch(), static_cast<size_t>(2 * std::min(wanted, END)) + 64})) {}

  Found next() {
    start_scoring();
    if (stages_.empty()) throw std::out_of_range("all 2^32 candidates of the seed are examined");
    if (!stages_.front().emitted) emit(stages_.front());
    start_scoring();
    if (stages_.size() > 1) emit(stages_[1]);
    Stage stage = std::move(stages_.front());
    stages_.pop_front();
    wait(stage.slot->queue.get());
    free_.push_back(std::move(stage.slot));
    return std::move(stage.found);
  }

 private:
  static constexpr uint64_t END = uint64_t{1} << 32;
  static constexpr size_t AHEAD = 2;

  struct Stage {
    std::unique_ptr<Slot> slot;
    Found found;
    bool emitted = false;
  };

  void start_scoring() {
    while (stages_.size() < AHEAD + 1 && first_ < END) {
      if (free_.empty()) free_.push_back(std::make_unique<Slot>());
      Stage stage;
      stage.slot = std::move(free_.back());
      free_.pop_back();
      stage.slot->first = static_cast<uint32_t>(first_);
      stage.slot->count = static_cast<size_t>(std::min<uint64_t>(size_, END - first_));
      first_ += stage.slot->count;
      scoring_.begin_verdicts(*stage.slot, low_, high_);
      stages_.push_back(std::move(stage));
    }
  }

  void emit(Stage& stage) {
    if (stage.emitted) return;
    Slot& slot = *stage.slot;
    Found& found = stage.found;
    const int8_t* verdict = scoring_.end_verdicts(slot, low_, high_);
    found.first = slot.first;
    found.examined = static_cast<uint32_t>(slot.count);
    for (size_t i = 0; i < slot.count; ++i) {
      if (verdict[i]) found.candidates.push_back(slot.first + static_cast<uint32_t>(i));
    }
    found.tokens = pinned_room();
    emission_.begin(slot, found.candidates.data(), nullptr, found.candidates.size(), found.tokens.get());
    stage.emitted = true;
  }

  // Room for a batch's documents that no caller holds any more.
  std::shared_ptr<void> pinned_room() {
    for (std::shared_ptr<void>& room : rooms_) {
      if (room.use_count() == 1) return room;
    }
    rooms_.emplace_back(allocate_pinned(size_ * emission_.bytes_each()), release_pinned);
    return rooms_.back();
  }

  Scoring scoring_;
  const Emission emission_;
  const int64_t low_, high_;
  const size_t size_;
  uint64_t first_ = 0;
  std::vector<std::shared_ptr<void>> rooms_;
  std::vector<std::unique_ptr<Slot>> free_;
  std::deque<Stage> stages_;  // the oldest first; last, so that its queues stop before their memory goes
};

Search::Search(const Params& params, uint64_t seed, int64_t low, int64_t high, uint64_t wanted, bool wide,
               const Execution& execution)
    : work_(new Work(params, seed, low, high, wanted, wide, execution)) {}

Search::~Search() = default;

Found Search::next() { return work_->next(); }

}  // namespace cuda
}  // namespace nca
