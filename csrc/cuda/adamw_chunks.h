// How the optimizer's table is cut into work for a GPU: plain data, made on the host once for tables of the same shapes.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/adamw_task.h"

namespace sff {

// Work of one thread block: `count` elements of a task from `begin` on, which is a multiple of kQuantizedBlock.
struct AdamWChunk {
    int64_t begin;
    int32_t count, task;
};
static_assert(sizeof(AdamWChunk) == 16, "no padding");

// What one launch does: chunks [first, first + count), whose tasks are stored alike.
struct AdamWBucket {
    int32_t param_dtype, state_type, storing;
    bool amsgrad;
    int64_t first, count;
};

struct AdamWChunks {
    std::vector<AdamWChunk> chunks, pieces;  // pieces: of kSumPiece elements, in the order of tasks, for sums
    std::vector<AdamWBucket> buckets;
};

constexpr int32_t kLargestAdamWChunk = 1 << 13;

// Cuts a table that check_adamw accepts. Only sizes and codes of the tasks count; of max_exp_avg_sq, whether it is 0.
AdamWChunks cut_adamw(const AdamWTask* tasks, int64_t count, int32_t largest = kLargestAdamWChunk);

}  // namespace sff
