// The optimizer's step on a GPU: one launch a bucket. Host code, without torch and without allocation or synchronisation.
#pragma once

#include <cuda_runtime.h>

#include "../core/adamw.h"
#include "adamw_chunks.h"
#include "global.h"
#include "smooth.h"

namespace sff {

struct AdamWLaunch {
    const AdamWTask* tasks;
    const AdamWChunk* chunks;
    uint32_t count;  // of chunks
    Origin memory;
    const float* factor;     // what gradients are multiplied by besides their task's grad_scale, or null
    const float* found_inf;  // not 0: nothing steps; or null
};

struct SumLaunch {
    const AdamWTask* tasks;
    const AdamWChunk* pieces;
    uint32_t count;  // of pieces
    Origin memory;
    double* sums;  // one a piece
};

// What clipping leaves on the device.
struct Clipped {
    double norm;
    float factor;
    float reserved;
};

cudaError_t adamw_shape_of(const AdamWBucket& bucket, Shape& shape);

AdamWLaunch arguments_of(const AdamWBucket& bucket, const AdamWTask* tasks, const AdamWChunk* chunks, const float* factor,
                         const float* found_inf);
SumLaunch sum_arguments(int64_t pieces, const AdamWTask* tasks, const AdamWChunk* table, double* sums);

// Steps the parameters of `bucket` on the current device, in stream order. Tables, factor and found_inf are in device memory.
cudaError_t launch_adamw(const AdamWBucket& bucket, const AdamWTask* tasks, const AdamWChunk* chunks, const float* factor,
                         const float* found_inf, Shape shape, cudaStream_t stream);

// The sum of squares of all gradients, added as the CPU does: one launch for the pieces' sums, and one that adds them, with the
// clipping that follows from them. loss_scale: what the losses were multiplied by, in device memory; it takes grad_scale's place.
cudaError_t launch_clipping(int64_t pieces, const AdamWTask* tasks, const AdamWChunk* table, double* sums, double grad_scale,
                            const float* loss_scale, double max_norm, Clipped* clipped, cudaStream_t stream);

}  // namespace sff
