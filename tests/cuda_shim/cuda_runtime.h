// A CUDA runtime that is a loop: enough of its names to compile csrc/cuda/*.cu, unmodified, with a C++ compiler.
//
// A launch runs every thread of every block, one after the other, on this CPU. That is the same computation for kernels
// whose threads do not talk to each other, and the sanitizers see all of it. With SHIM_WARPS the threads of a warp may exchange
// values (warps.h); shared memory and barriers are not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

struct alignas(8) uint2 {
    uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = void*;

// A device of three processors that hold two blocks each.
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidValue"; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }
#define CUDART_VERSION 0
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
    return *blocks = 2, cudaSuccess;
}
struct cudaFuncAttributes {};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

#ifdef SHIM_WARPS
#include "warps.h"
#else
namespace shim {
// Calls thread() for every thread of the current block, threadIdx set.
template <class Thread>
void run_block(unsigned threads, const Thread& thread) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) thread();
}
}  // namespace shim
#endif

template <class... Arguments, size_t... I>
void shim_call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Arguments>*>(arguments[I])...);
}

template <class... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t) {
    if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidValue;
    gridDim = grid;
    blockDim = block;
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        shim::run_block(block.x, [&] { shim_call(kernel, arguments, std::index_sequence_for<Arguments...>()); });
    return cudaSuccess;
}
