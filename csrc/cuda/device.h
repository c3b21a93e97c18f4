// The seam between the pipeline and a device, on one page: memory, queues of work, kernels. kernels.cu fills it with
// CUDA; the tests fill it with the emulation and run the same pipeline.
#pragma once

#include <stddef.h>

#include "job.h"

namespace nca {
namespace cuda {

// Throws std::runtime_error, with the reason, where there is no device that can run the kernels.
void check_device();
const char* device_name();

void* allocate(size_t bytes);  // on the device; these throw std::runtime_error
void* allocate_pinned(size_t bytes);
void release(void*);
void release_pinned(void*);

// Work of a queue is done in order, work of several at once. Nothing but `wait` waits.
struct Queue;
Queue* make_queue();
void drop_queue(Queue*);
void wait(Queue*);
void upload(Queue*, void* device, const void* pinned, size_t bytes);
void download(Queue*, void* pinned, const void* device, size_t bytes);
void run(Queue*, const Rollouts&);
void run(Queue*, const Filter&);

}  // namespace cuda
}  // namespace nca
