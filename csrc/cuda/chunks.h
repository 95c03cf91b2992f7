// How a kernel table is cut into work for a GPU: plain data, made on the host once a plan and resident on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/config.h"
#include "../core/task.h"

namespace sff {

// Elements of a run, of `size` bytes, before its first vector; where a unit of draws is two vectors, before the one that a
// block of draws begins at, if one of the two does.
SFF_INLINE int ahead_of_vectors(uint64_t data, uint64_t draw, int size) {
    const int head = static_cast<int>((0 - data) % 16) / size;
    return head + (size == 8 && ((draw + static_cast<uint64_t>(head)) & 3) == 2 ? 2 : 0);
}

// Whether draws (four a block) or rounding numbers (eight) of the element `head` of a run stand inside their block.
SFF_INLINE bool shifted_at(int head, uint64_t draw, uint64_t logical, bool is_random, bool stochastic) {
    const uint64_t at = static_cast<uint64_t>(head);
    return (is_random && ((draw + at) & 3) != 0) || (stochastic && ((logical + at) & 7) != 0);
}

// Work of one thread block. A run (task >= 0) is `count` elements from address `data` on that are contiguous in memory, in
// the draw and in the rounding; over a run the high counter words of both streams stay the same. Scattered elements
// (task < 0, of task ~task) are `count` elements of the box from element `draw` on, counted row-major.
struct Chunk {
    uint64_t data, draw, logical;
    int32_t count, task;
};
static_assert(sizeof(Chunk) == 32, "no padding");

// A bucket's kernel: what is more than the plain one takes more registers. kTruncated: truncated normals are among its draws.
// kShifted: draws or rounding numbers of a run begin inside a block where its vectors begin; truncated normals may be there too.
enum Variant : int32_t { kPlain = 0, kTruncated = 1, kShifted = 2 };

// What one launch does: chunks [first, first + count) are of one dtype, one rounding and one seed. A plan has one seed and
// one rounding, hence one bucket a dtype.
struct Bucket {
    int32_t dtype, rounding;
    Variant variant;
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
