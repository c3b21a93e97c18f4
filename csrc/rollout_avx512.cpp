// Sixteen cells at a time. Compiled with the flags of setup.py; run only where the processor has all of these sets.
#include "rollout_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace nca {
namespace avx512 {

#include "rollout_lanes_avx512.h"

#include "rollout_kernel_body.h"

}  // namespace avx512

const Kernel avx512_kernel = NCA_KERNEL(avx512);

}  // namespace nca
#endif
