// Compiler switches shared by every backend.
//
// The headers of csrc/core hold each formula of the package once. They are compiled several times: for each CPU
// instruction set (SFF_ISA names it) and by a device compiler. Everything therefore lives in namespace sff::SFF_ISA, so
// that no instruction of a wider set can leak through the linker into code that runs on an older machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef SFF_ISA
#define SFF_ISA portable
#endif

#if defined(__CUDACC__)
#define SFF_INLINE __host__ __device__ __forceinline__
#define SFF_UNROLL _Pragma("unroll")
#define SFF_ONCE _Pragma("unroll 1")
#elif defined(SFF_INLINE)  // given: tests that compile the kernels for this CPU do so without inlining, in a tenth of the time
#define SFF_UNROLL
#define SFF_ONCE
#elif defined(__clang__)
#define SFF_INLINE inline __attribute__((always_inline))
#define SFF_UNROLL _Pragma("unroll")
#define SFF_ONCE
#else
#define SFF_INLINE inline __attribute__((always_inline))
#define SFF_UNROLL _Pragma("GCC unroll 16")
#define SFF_ONCE
#endif
