// The CUDA backend: launches the kernel of one bucket. Host code, without torch and without allocation or synchronisation.
#pragma once

#include <cuda_runtime.h>

#include "../core/philox.h"
#include "chunks.h"
#include "global.h"
#include "occupancy.h"

namespace sff {

// All that a kernel gets. The round keys of the draws lie in the parameter space, which instructions read as an operand: the key
// schedule costs neither registers nor instructions.
struct Launch {
    const Task* tasks;
    const Chunk* chunks;
    uint32_t count;  // of chunks
    Origin memory;   // any address of the bucket's parameters
    uint64_t round_seed;
    SFF_ISA::PhiloxKey draw;
};

// Whether the current device can run the kernels: cudaErrorNoKernelImageForDevice where its architecture was not compiled.
cudaError_t has_kernel(const Bucket& bucket);

// As many blocks as the current device holds at once, or one a chunk where there are fewer.
cudaError_t shape_of(const Bucket& bucket, Shape& shape);

Launch arguments_of(const Bucket& bucket, const Task* tasks, const Chunk* chunks);

// Runs `bucket` on the current device, in stream order. `tasks` and `chunks` are the whole tables in device memory.
cudaError_t launch(const Bucket& bucket, const Task* tasks, const Chunk* chunks, Shape shape, cudaStream_t stream);

}  // namespace sff
