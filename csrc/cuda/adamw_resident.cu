// The kernels that keep the optimizer's tables on the device. They are small: a page of words, and one thread a parameter.
#include "adamw_resident.h"

#include "launch.h"

namespace sff {
namespace {

using namespace SFF_ISA;

__global__ void __launch_bounds__(kThreads) write_kernel(const WriteLaunch launch) {
    for (uint32_t i = threadIdx.x; i < launch.count; i += blockDim.x) launch.to[i] = launch.words[i];
}

__device__ __forceinline__ double rate_of(const AdamWOptions& o, const Origin& memory) {
    switch (o.rate_type) {
        case kRateFloat32: return static_cast<double>(*reinterpret_cast<const float*>(at_address(memory, o.lr)));
        case kRateFloat64: return *reinterpret_cast<const double*>(at_address(memory, o.lr));
        default: return o.lr_number;
    }
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(const PrepareLaunch launch) {
    if (launch.found_inf != nullptr && *launch.found_inf != 0.0f) return;
    const double grad_scale = launch.loss_scale == nullptr ? 1.0 : 1.0 / static_cast<double>(*launch.loss_scale);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < launch.count; i += gridDim.x * blockDim.x) {
        const AdamWOptions& o = launch.options[i];
        float* step = reinterpret_cast<float*>(at_address(launch.memory, o.step));
        const float count = *step + 1.0f;
        *step = count;
        set_coefficients(o, rate_of(o, launch.memory), count, grad_scale, launch.tasks[i]);
    }
}

}  // namespace

cudaError_t launch_writing(const uint64_t* words, int64_t count, uint64_t* to, cudaStream_t stream) {
    for (int64_t begin = 0; begin < count; begin += kPageWords) {
        const int64_t left = count - begin, some = left < kPageWords ? left : kPageWords;
        WriteLaunch page = {to + begin, static_cast<uint32_t>(some), 0, {}};
        memcpy(page.words, words + begin, static_cast<size_t>(some) * sizeof *words);
        const cudaError_t error = checked_launch(write_kernel, Shape{1, kThreads}, stream, page);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t launch_preparing(AdamWTask* tasks, const AdamWOptions* options, int64_t count, const float* loss_scale,
                             const float* found_inf, cudaStream_t stream) {
    if (count == 0) return cudaSuccess;
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    const Origin memory = {reinterpret_cast<char*>(tasks), reinterpret_cast<uint64_t>(tasks)};
    const PrepareLaunch launch = {tasks, options, static_cast<uint32_t>(count), memory, loss_scale, found_inf};
    return checked_launch(prepare_kernel, Shape{static_cast<unsigned>(blocks), kThreads}, stream, launch);
}

}  // namespace sff
