// What one compiled instruction set offers to the dispatcher.
#pragma once

#include <cstdint>

#include "../core/task.h"

namespace sff {

struct Kernel {
    const char* name;
    // Elements [begin, end) of the box of `task`, counted row-major over task.size. Caller guarantees a valid task and the
    // default floating-point environment.
    void (*run)(const Task& task, int64_t begin, int64_t end);
    // Random123's interface for known-answer tests: words of `count` consecutive blocks, four each.
    void (*philox_words)(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint32_t* words);
    // Standard draws of given words, for exhaustive tests of the transforms: kind as Distribution; kNormal takes pairs of
    // words and returns pairs, kUniform and kTruncNormal one number a word.
    void (*transform)(const Task& task, const uint32_t* words, int64_t count, float* draws);
};

// One function an instruction set; each lives in its own translation unit (smooth_isa.cpp compiled with other flags).
const Kernel* kernel_portable();
#if defined(__x86_64__)
const Kernel* kernel_avx2();
const Kernel* kernel_avx512();
const Kernel* kernel_avx512bf16();
#endif

}  // namespace sff
