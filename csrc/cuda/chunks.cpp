#include "chunks.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

namespace sff {
namespace {

constexpr int64_t kShortRow = 128;                    // rows below this many elements are done one element a thread
constexpr uint64_t kCut = 128;                        // bytes: a cache line, so that only the ends of a run are scalar
constexpr uint64_t kDrawsAHighWord = 1ull << 34;      // four draws a block, 2^32 blocks
constexpr uint64_t kRoundingsAHighWord = 1ull << 35;  // eight

int64_t elements_of(const Task& t) {
    int64_t n = 1;
    for (int d = 0; d < t.rank; ++d) n *= t.size[d];
    return n;
}

bool rounds_stochastically(const Task& t) { return t.rounding == kStochastic && (t.dtype == kBFloat16 || t.dtype == kFloat16); }

bool is_random(const Task& t) { return t.distribution != kConstant && t.distribution != kTable; }

Bucket bucket_of(const Task& t) {
    const bool stochastic = rounds_stochastically(t);
    return {t.dtype,
            stochastic ? kStochastic : kNearest,
            t.distribution == kTruncNormal ? kTruncated : kPlain,
            t.seed,
            stochastic ? t.round_seed : 0,
            t.data,
            0,
            0};
}

auto order(const Bucket& b) { return std::make_tuple(b.dtype, b.rounding, b.seed, b.round_seed); }

bool has_runs(const Task& t, int64_t elements) {
    const int last = t.rank - 1;
    return t.memory_strides[last] == 1 && (t.draw_strides[last] == 1 || t.distribution == kConstant) &&
           (t.logical_strides[last] == 1 || !rounds_stochastically(t)) && (t.size[last] >= kShortRow || t.size[last] == elements);
}

bool is_shifted(const Task& t, const Chunk& c) {
    const int head = ahead_of_vectors(c.data, c.draw, static_cast<int>(kElementSize[t.dtype]));
    return head < c.count && shifted_at(head, c.draw, c.logical, is_random(t), rounds_stochastically(t));
}

uint64_t until(uint64_t index, uint64_t multiple) { return multiple - index % multiple; }

void add_run(const Task& t, int32_t task, int64_t memory, int64_t draw, int64_t logical, int32_t largest,
             std::vector<Chunk>& chunks) {
    const uint64_t width = static_cast<uint64_t>(kElementSize[t.dtype]);
    Chunk c = {t.data + static_cast<uint64_t>(memory) * width, static_cast<uint64_t>(draw), static_cast<uint64_t>(logical), 0,
               task};
    for (uint64_t left = static_cast<uint64_t>(t.size[t.rank - 1]); left > 0;) {
        uint64_t n = left;
        if (n > static_cast<uint64_t>(largest)) {
            n = static_cast<uint64_t>(largest);
            const uint64_t beyond = (c.data + n * width) % kCut / width;
            if (beyond < n) n -= beyond;
        }
        if (is_random(t)) n = std::min(n, until(c.draw, kDrawsAHighWord));
        if (rounds_stochastically(t)) n = std::min(n, until(c.logical, kRoundingsAHighWord));
        c.count = static_cast<int32_t>(n);
        chunks.push_back(c);
        c.data += n * width;
        c.draw += n;
        c.logical += n;
        left -= n;
    }
}

void add_runs(const Task& t, int32_t task, int32_t largest, std::vector<Chunk>& chunks) {
    int64_t m[kMaxRank] = {};
    while (true) {
        int64_t memory = t.memory_offset, draw = t.draw_offset, logical = t.logical_offset;
        for (int d = 0; d < t.rank - 1; ++d) {
            memory += m[d] * t.memory_strides[d];
            draw += m[d] * t.draw_strides[d];
            logical += m[d] * t.logical_strides[d];
        }
        add_run(t, task, memory, draw, logical, largest, chunks);
        int d = t.rank - 2;
        for (; d >= 0; --d) {
            if (++m[d] < t.size[d]) break;
            m[d] = 0;
        }
        if (d < 0) return;
    }
}

void add_scattered(int32_t task, int64_t elements, int32_t largest, std::vector<Chunk>& chunks) {
    for (int64_t begin = 0; begin < elements; begin += largest)
        chunks.push_back(
            {0, static_cast<uint64_t>(begin), 0, static_cast<int32_t>(std::min<int64_t>(largest, elements - begin)), ~task});
}

}  // namespace

Chunks cut_into_chunks(const Task* tasks, int64_t count, int32_t largest) {
    if (largest < 1) throw std::invalid_argument("largest: expected at least 1, got " + std::to_string(largest));
    if (count > std::numeric_limits<int32_t>::max())
        throw std::invalid_argument("kernel table: expected at most 2^31 - 1 tasks, got " + std::to_string(count));
    std::vector<int32_t> sorted;
    for (int64_t i = 0; i < count; ++i)
        if (elements_of(tasks[i]) > 0) sorted.push_back(static_cast<int32_t>(i));
    const auto before = [&](int32_t a, int32_t b) { return order(bucket_of(tasks[a])) < order(bucket_of(tasks[b])); };
    std::stable_sort(sorted.begin(), sorted.end(), before);
    Chunks result;
    for (const int32_t i : sorted) {
        const Task& t = tasks[i];
        Bucket bucket = bucket_of(t);
        if (result.buckets.empty() || order(result.buckets.back()) != order(bucket)) {
            bucket.first = static_cast<int64_t>(result.chunks.size());
            result.buckets.push_back(bucket);
        }
        Variant& variant = result.buckets.back().variant;
        variant = std::max(variant, bucket.variant);
        const size_t before_it = result.chunks.size();
        const int64_t elements = elements_of(t);
        if (has_runs(t, elements)) {
            add_runs(t, i, largest, result.chunks);
            const auto shifted = [&](const Chunk& c) { return is_shifted(t, c); };
            if (std::any_of(result.chunks.begin() + static_cast<ptrdiff_t>(before_it), result.chunks.end(), shifted))
                variant = kShifted;
        } else {
            add_scattered(i, elements, largest, result.chunks);
        }
        result.buckets.back().count = static_cast<int64_t>(result.chunks.size()) - result.buckets.back().first;
    }
    return result;
}

}  // namespace sff
