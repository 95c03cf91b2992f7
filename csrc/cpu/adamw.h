// The optimizer's step on the CPU: checks a table of parameters and runs it on some threads.
#pragma once

#include <cstdint>
#include <string>

#include "adamw_kernel.h"

namespace sff {

// Throws std::invalid_argument naming the task and what is wrong with it: unknown codes, addresses missing or not aligned,
// coefficients that cannot be (NaN is let through: it may come from a gradient), two tasks that write the same memory.
void check_adamw(const AdamWTask* tasks, int64_t count);

// One step of a checked table, on one fork-join. Returns the number of threads that took part.
int adamw(const AdamWTask* tasks, int64_t count, int threads, const AdamWKernel& kernel);

// Sum of squares of all gradients of a checked table, the same for any number of threads.
double sum_of_squares(const AdamWTask* tasks, int64_t count, int threads, const AdamWKernel& kernel);

// The optimizer's kernels beside select_kernel(isa).
const AdamWKernel& select_adamw(const std::string& isa);

}  // namespace sff
