// How a kernel table is cut into work for a GPU: plain data, made on the host once a plan and resident on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/task.h"

namespace sff {

// Work of one thread block. A run (task >= 0) is `count` elements from address `data` on that are contiguous in memory, in
// the draw and in the rounding; over a run the high counter words of both streams stay the same. Scattered elements
// (task < 0, of task ~task) are `count` elements of the box from element `draw` on, counted row-major.
struct Chunk {
    uint64_t data, draw, logical;
    int32_t count, task;
};
static_assert(sizeof(Chunk) == 32, "no padding");

// What one launch does: chunks [first, first + count) are of one dtype, one rounding and one seed. A plan has one seed and
// one rounding, hence one bucket a dtype. Truncated normals among them take a kernel that has more registers.
struct Bucket {
    int32_t dtype, rounding;
    bool truncated;
    uint64_t seed, round_seed, memory;  // memory: address of one of its parameters
    int64_t first, count;
};

struct Chunks {
    std::vector<Chunk> chunks;
    std::vector<Bucket> buckets;
};

// Cuts a table that check_tasks accepts. Runs are cut at multiples of 128 bytes in memory, after `largest` elements.
constexpr int32_t kLargestChunk = 1 << 14;
Chunks cut_into_chunks(const Task* tasks, int64_t count, int32_t largest = kLargestChunk);

}  // namespace sff
