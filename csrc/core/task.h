// The kernel table: one Task is a box of one parameter that one distribution fills. Plain data, the same on host and
// device; its layout is mirrored by sff_fast/table.py (TASK_DTYPE) and checked by the bindings at import.
#pragma once

#include <cstdint>

namespace sff {

enum Distribution : int32_t { kConstant = 0, kUniform = 1, kNormal = 2, kTruncNormal = 3, kTable = 4 };
enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };
enum Rounding : int32_t { kNearest = 0, kStochastic = 1 };

constexpr int64_t kElementSize[] = {4, 2, 2, 8};  // bytes by DType
constexpr int kMaxRank = 6;

// For each multi-index m of `size`, with s(strides) = sum(m * strides):
//   element in memory  data[memory_offset + s(memory_strides)]           (counted in elements of dtype)
//   random number      number draw_offset + s(draw_strides) of (seed, stream)
//   rounding           number logical_offset + s(logical_strides) of (round_seed, round_stream)
// becomes fma(shrink, element, perturb * draw), rounded once to dtype.
struct Task {
    uint64_t data;            // address of element 0 of the parameter's memory
    uint64_t table;           // kTable: address of the fp32 draws, indexed like random numbers; else 0
    int64_t memory_elements;  // elements that may be touched from `data` on
    int64_t table_elements;   // kTable: elements that may be read from `table` on
    int32_t dtype, distribution, rounding, rank;
    int64_t size[kMaxRank];
    int64_t memory_strides[kMaxRank], draw_strides[kMaxRank], logical_strides[kMaxRank];
    int64_t memory_offset, draw_offset, logical_offset;
    uint64_t seed, stream, round_seed, round_stream;
    double shrink, perturb;
    // kConstant: value. kUniform: low, width. kNormal: mean, std.
    // kTruncNormal: mean, std, a, b, P(a), Q(b), P(b) - P(a) times 2^-24, 1 if a draw may fall into the tails.
    float p[8];
};

static_assert(sizeof(Task) == 4 * 8 + 4 * 4 + 4 * kMaxRank * 8 + 3 * 8 + 4 * 8 + 2 * 8 + 8 * 4, "no padding");

}  // namespace sff
