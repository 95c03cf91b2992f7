#include "adamw_chunks.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

namespace sff {
namespace {

auto order(const AdamWBucket& b) { return std::make_tuple(b.param_dtype, b.state_type, b.storing, b.amsgrad); }

AdamWBucket bucket_of(const AdamWTask& t) { return {t.param_dtype, t.state_type, t.storing, t.max_exp_avg_sq != 0, 0, 0}; }

void cut(const AdamWTask& t, int32_t task, int64_t largest, std::vector<AdamWChunk>& chunks) {
    for (int64_t begin = 0; begin < t.elements; begin += largest)
        chunks.push_back({begin, static_cast<int32_t>(std::min(largest, t.elements - begin)), task});
}

}  // namespace

AdamWChunks cut_adamw(const AdamWTask* tasks, int64_t count, int32_t largest) {
    if (largest < kQuantizedBlock || largest % kQuantizedBlock != 0)
        throw std::invalid_argument("largest: expected a multiple of " + std::to_string(kQuantizedBlock) + ", got " +
                                    std::to_string(largest));
    if (count > std::numeric_limits<int32_t>::max())
        throw std::invalid_argument("optimizer table: expected at most 2^31 - 1 tasks, got " + std::to_string(count));
    AdamWChunks result;
    std::vector<int32_t> sorted;
    for (int32_t i = 0; i < static_cast<int32_t>(count); ++i) {
        cut(tasks[i], i, kSumPiece, result.pieces);
        if (tasks[i].elements > 0) sorted.push_back(i);
    }
    const auto before = [&](int32_t a, int32_t b) { return order(bucket_of(tasks[a])) < order(bucket_of(tasks[b])); };
    std::stable_sort(sorted.begin(), sorted.end(), before);
    for (const int32_t i : sorted) {
        AdamWBucket bucket = bucket_of(tasks[i]);
        if (result.buckets.empty() || order(result.buckets.back()) != order(bucket)) {
            bucket.first = static_cast<int64_t>(result.chunks.size());
            result.buckets.push_back(bucket);
        }
        cut(tasks[i], i, largest, result.chunks);
        result.buckets.back().count = static_cast<int64_t>(result.chunks.size()) - result.buckets.back().first;
    }
    return result;
}

}  // namespace sff
