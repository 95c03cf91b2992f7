// Steps of the optimizer that the device prepares for itself, so that a CUDA graph may hold them: tables that lie on the device
// and are written by launches, and coefficients computed from step numbers there. Host code, without allocation or
// synchronisation.
#pragma once

#include <cuda_runtime.h>

#include "adamw_options.h"
#include "global.h"

namespace sff {

// Words that travel in a launch's own parameters, of which there may be 4 KiB: a graph keeps them, and no memory of the host's.
constexpr int kPageWords = 480;
struct WriteLaunch {
    uint64_t* to;
    uint32_t count;  // of words
    uint32_t reserved;
    uint64_t words[kPageWords];
};

struct PrepareLaunch {
    AdamWTask* tasks;
    const AdamWOptions* options;  // one a task
    uint32_t count;
    Origin memory;
    const float* loss_scale;  // what losses were multiplied by, or null
    const float* found_inf;   // not 0: nothing steps; or null
};

// Writes `count` words to `to` in stream order, kPageWords a launch.
cudaError_t launch_writing(const uint64_t* words, int64_t count, uint64_t* to, cudaStream_t stream);

// Counts the step of every task and sets its coefficients, in stream order; nothing where `found_inf` says so.
cudaError_t launch_preparing(AdamWTask* tasks, const AdamWOptions* options, int64_t count, const float* loss_scale,
                             const float* found_inf, cudaStream_t stream);

}  // namespace sff
