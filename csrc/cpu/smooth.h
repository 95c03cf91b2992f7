// The CPU backend: checks a kernel table and runs it on some threads.
#pragma once

#include <cstdint>
#include <string>

#include "kernel.h"

namespace sff {

// Throws std::invalid_argument naming the task and what is wrong with it: unknown codes, sizes out of range, accesses
// outside of the memory that a task names, non-finite parameters, or two tasks that write the same element.
void check_tasks(const Task* tasks, int64_t count);

// Seeds of the draws and of stochastic rounding, instead of those of the tasks.
struct Seeds {
    uint64_t draw, round;
};

// Runs a checked table, with other seeds where they are given. Returns the number of threads that took part.
int smooth(const Task* tasks, int64_t count, int threads, const Kernel& kernel, const Seeds* seeds = nullptr);

// The widest instruction set of this machine, or the one named ("baseline", "avx2", "avx512"); throws
// std::invalid_argument where the machine lacks it.
const Kernel& select_kernel(const std::string& isa);

}  // namespace sff
