// One launch, and what CUDA says of it.
#pragma once

#include <cuda_runtime.h>

#include "occupancy.h"

namespace sff {

template <class... Arguments>
cudaError_t checked_launch(void (*kernel)(Arguments...), Shape shape, cudaStream_t stream, Arguments... arguments) {
    void* list[] = {&arguments...};
    const cudaError_t error = cudaLaunchKernel(kernel, dim3(shape.grid), dim3(shape.block), list, 0, stream);
    return error == cudaSuccess ? cudaPeekAtLastError() : error;
}

}  // namespace sff
