// The launch shape of grid-stride kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sff {

struct Shape {
    unsigned grid, block;
};

constexpr unsigned kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// As many blocks as the current device holds at once, or `blocks` where these are fewer.
template <class Kernel>
cudaError_t resident_shape(Kernel kernel, int64_t blocks, Shape& shape) {
    int device = 0, processors = 0, resident = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, static_cast<int>(kThreads), 0);
    if (error != cudaSuccess) return error;
    const int64_t at_once = static_cast<int64_t>(processors) * resident;
    shape = {static_cast<unsigned>(blocks < at_once ? blocks : at_once), kThreads};
    return cudaSuccess;
}

}  // namespace sff
