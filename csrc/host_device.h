// One header for g++ and nvcc: the functions of the automaton carry NCA_FN and know no vector unit and no Python.
//
// NCA_FN functions have internal linkage on purpose. The same header is compiled for several instruction sets into one
// library; with external linkage the linker could keep the copy that an older processor cannot run.
#pragma once

#if defined(__CUDACC__)
#define NCA_FN static __host__ __device__ __forceinline__
#else
#define NCA_FN static inline __attribute__((always_inline))
#endif

// Before a loop that g++ would unroll whole, and then spill its registers (measured: 5 % of an update).
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define NCA_ROLLED _Pragma("GCC unroll 1")
#else
#define NCA_ROLLED
#endif
