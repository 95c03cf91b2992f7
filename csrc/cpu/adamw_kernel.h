// What one compiled instruction set offers to the optimizer.
#pragma once

#include <cstdint>

#include "../core/adamw_task.h"

namespace sff {

struct AdamWKernel {
    // Elements [begin, end) of a task; begin is a multiple of kQuantizedBlock. Caller guarantees a valid task and the
    // default floating-point environment.
    void (*step)(const AdamWTask& task, int64_t begin, int64_t end);
    // Sum of squares of elements [begin, end) of the gradient, in fp64: element i joins partial sum i mod 16, so that the
    // result is the same for every instruction set.
    double (*sum_of_squares)(const AdamWTask& task, int64_t begin, int64_t end);
};

// One function an instruction set (adamw_isa.cpp compiled with other flags).
const AdamWKernel* adamw_portable();
#if defined(__x86_64__)
const AdamWKernel* adamw_avx2();
const AdamWKernel* adamw_avx512();
const AdamWKernel* adamw_avx512bf16();
#endif

}  // namespace sff
