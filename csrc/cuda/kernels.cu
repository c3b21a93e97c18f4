// The device in CUDA. Kernels are thin shells around functions that the emulation runs too.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "candidate.cuh"
#include "device.h"
#include "filter.cuh"

namespace nca {
namespace cuda {

namespace {

constexpr int MOST_THREADS = 128;
// Blocks that share a processor, which bounds the registers of a thread: 168 with three, 255 with two. Before sm_90
// the kernel of ten states would spill with three.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BLOCKS_OF_PROCESSOR = 2;
#else
constexpr int BLOCKS_OF_PROCESSOR = 3;
#endif

template <int S>
__global__ void __launch_bounds__(MOST_THREADS, BLOCKS_OF_PROCESSOR)
    roll_out_kernel(const __grid_constant__ Rollouts job, int team_size, unsigned bytes) {
  extern __shared__ __align__(16) uint8_t shared[];
  const unsigned team = threadIdx.x / team_size;
  roll_out<S>(Team(team_size), job, blockIdx.x * (blockDim.x / team_size) + team, shared + team * bytes);
}

__global__ void __launch_bounds__(MOST_THREADS, 12)
    filter_kernel(const __grid_constant__ Filter job, unsigned bytes) {
  extern __shared__ __align__(16) uint8_t shared[];
  const unsigned warp = threadIdx.x / WARP, index = blockIdx.x * (MOST_THREADS / WARP) + warp;
  if (index < job.count) filter(Team(WARP), job, index, shared + warp * bytes);
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

int most_shared_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for shared memory");
  return bytes;
}

template <int S>
void launch(cudaStream_t stream, const Rollouts& job, const Shape& shape) {
  const size_t of_warp = WARP / shape.team_size * shape.team_bytes, most = static_cast<size_t>(most_shared_bytes());
  unsigned warps = MOST_THREADS / WARP;
  while (warps > 1 && warps * of_warp > most) --warps;
  const unsigned teams = warps * WARP / shape.team_size, bytes = static_cast<unsigned>(warps * of_warp);
  check(cudaFuncSetAttribute(roll_out_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
  roll_out_kernel<S><<<(job.count + teams - 1) / teams, warps * WARP, bytes, stream>>>(
      job, shape.team_size, static_cast<unsigned>(shape.team_bytes));
  check(cudaGetLastError(), "starting rollouts");
}

}  // namespace

struct Queue {
  cudaStream_t stream;
};

void check_device() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "looking for a GPU");
  if (count == 0) throw std::runtime_error("CUDA: there is no GPU");
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, roll_out_kernel<10>), "looking for kernels for this GPU");
}

const char* device_name() {
  static cudaDeviceProp properties;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaGetDeviceProperties(&properties, device), "asking for its name");
  return properties.name;
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "allocating memory of the device");
  return memory;
}

void* allocate_pinned(size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), "allocating pinned memory");
  return memory;
}

void release(void* memory) { cudaFree(memory); }

void release_pinned(void* memory) { cudaFreeHost(memory); }

Queue* make_queue() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return new Queue{stream};
}

void drop_queue(Queue* queue) {
  cudaStreamSynchronize(queue->stream);
  cudaStreamDestroy(queue->stream);
  delete queue;
}

void wait(Queue* queue) { check(cudaStreamSynchronize(queue->stream), "running kernels"); }

void upload(Queue* queue, void* device, const void* pinned, size_t bytes) {
  check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, queue->stream), "copying to the device");
}

void download(Queue* queue, void* pinned, const void* device, size_t bytes) {
  check(cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, queue->stream), "copying from the device");
}

void run(Queue* queue, const Rollouts& job) {
  const Shape shape = shape_of(job.law);
  switch (shape.states) {
    case 2: return launch<2>(queue->stream, job, shape);
    case 4: return launch<4>(queue->stream, job, shape);
    case 8: return launch<8>(queue->stream, job, shape);
    case 10: return launch<10>(queue->stream, job, shape);
    case 12: return launch<12>(queue->stream, job, shape);
    case 16: return launch<16>(queue->stream, job, shape);
  }
}

void run(Queue* queue, const Filter& job) {
  constexpr unsigned WARPS = MOST_THREADS / WARP;
  const unsigned bytes = static_cast<unsigned>(filter_bytes(job.length));
  filter_kernel<<<(job.count + WARPS - 1) / WARPS, MOST_THREADS, WARPS * bytes, queue->stream>>>(job, bytes);
  check(cudaGetLastError(), "starting the filter");
}

}  // namespace cuda
}  // namespace nca
