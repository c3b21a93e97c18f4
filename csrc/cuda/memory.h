// Owners of what device.h hands out as pointers.
#pragma once

#include <memory>

#include "device.h"

namespace nca {
namespace cuda {

struct DropQueue {
  void operator()(Queue* queue) const { drop_queue(queue); }
};
using OwnedQueue = std::unique_ptr<Queue, DropQueue>;

// Room for `count` values, made anew only where it must grow.
template <class T, void* (*ALLOCATE)(size_t), void (*RELEASE)(void*)>
class Buffer {
 public:
  T* with_room(size_t count) {
    if (count > count_) {
      memory_.reset();
      memory_.reset(static_cast<T*>(ALLOCATE(count * sizeof(T))));
      count_ = count;
    }
    return memory_.get();
  }
  T* get() const { return memory_.get(); }

 private:
  struct Release {
    void operator()(T* memory) const { RELEASE(memory); }
  };
  std::unique_ptr<T, Release> memory_;
  size_t count_ = 0;
};

template <class T>
using DeviceBuffer = Buffer<T, allocate, release>;
template <class T>
using PinnedBuffer = Buffer<T, allocate_pinned, release_pinned>;

}  // namespace cuda
}  // namespace nca
