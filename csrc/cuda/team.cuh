// A team: the threads of one warp that work on one candidate together. Kernels are written as phases: what each lane
// does on its own, then a barrier. What one lane wrote before the barrier every lane may read after it.
//
// nvcc compiles a phase as straight code of one thread and a __syncwarp; g++ as a loop over the lanes. So the tests run
// everything but the hardware on a CPU, from these same files. They run the lanes of a phase in one order and in the
// reverse of it, which tells where a phase reads what it writes: a missing barrier. Two lanes that write different
// values to one place at once are not seen.
#pragma once

#include <stdint.h>

#include "job.h"

#if defined(__CUDACC__)
#define NCA_MEMBER __host__ __device__ __forceinline__
#define NCA_UNROLLED _Pragma("unroll")
#define NCA_UNROLLED_TWICE _Pragma("unroll 2")
#define NCA_UNROLL_NONE _Pragma("unroll 1")
#else
#define NCA_MEMBER inline
#define NCA_UNROLLED
#define NCA_UNROLLED_TWICE
#define NCA_UNROLL_NONE
#endif

namespace nca {
namespace cuda {

#if defined(__CUDACC__)

// A value of each lane that lives from phase to phase: in a register.
template <class T>
class PerLane {
 public:
  NCA_MEMBER T& operator[](int) { return value_; }

 private:
  T value_;
};

// `size` neighbouring lanes of a warp, a power of two. All teams of a warp go through the same phases, and the barrier
// is the warp's: halves of a warp that drift apart would each issue every instruction.
class Team {
 public:
  __device__ __forceinline__ explicit Team(int team_size) : size(team_size), lane_(threadIdx.x & (team_size - 1)) {}

  template <class Phase>
  NCA_MEMBER void phase(Phase phase) const {
    phase(lane_);
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
  }

  // Of whole warps only: the greatest of the lanes' values, and their sum.
  NCA_MEMBER uint32_t greatest(PerLane<uint32_t>& value) const {
#if defined(__CUDA_ARCH__)
    return __reduce_max_sync(~0u, value[lane_]);
#else
    return value[lane_];  // never called: nvcc compiles these functions for the host too
#endif
  }
  NCA_MEMBER uint32_t sum(PerLane<uint32_t>& value) const {
#if defined(__CUDA_ARCH__)
    return __reduce_add_sync(~0u, value[lane_]);
#else
    return value[lane_];
#endif
  }

  const int size;

 private:
  const int lane_;
};

#else

template <class T>
class PerLane {
 public:
  T& operator[](int lane) { return value_[lane]; }

 private:
  T value_[WARP];
};

class Team {
 public:
  explicit Team(int team_size) : size(team_size) {}

  template <class Phase>
  void phase(Phase phase) const {
    for (int i = 0; i < size; ++i) phase(reversed ? size - 1 - i : i);
  }

  static inline bool reversed = false;

  uint32_t greatest(PerLane<uint32_t>& value) const {
    uint32_t result = 0;
    for (int lane = 0; lane < size; ++lane) result = value[lane] > result ? value[lane] : result;
    return result;
  }
  uint32_t sum(PerLane<uint32_t>& value) const {
    uint32_t result = 0;
    for (int lane = 0; lane < size; ++lane) result += value[lane];
    return result;
  }

  const int size;
};

#endif

// Adds one to a counter that all lanes share; returns what it was. The order of lanes is not fixed.
NCA_FN uint32_t take_number(uint32_t* counter) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(counter, 1u);
#else
  return (*counter)++;
#endif
}

// No NaN comes here, and of two zeros of different sign either will do: no comparison, product or sum that follows
// tells them apart. So the device may use its one instruction.
NCA_FN float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}

NCA_FN float smaller(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}

}  // namespace cuda
}  // namespace nca
