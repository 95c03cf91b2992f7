// Refuses a kernel table that would touch memory that is not its own, or an element twice.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "smooth.h"

namespace sff {
namespace {

using Wide = __int128;  // strides times sizes must not overflow before they are compared

[[noreturn]] void refuse(int64_t index, const std::string& what) {
    throw std::invalid_argument("kernel table, task " + std::to_string(index) + ": " + what);
}

struct Range {
    Wide first, last;  // smallest and largest index of a non-empty box
};

Range range_of(const Task& t, int64_t offset, const int64_t (&strides)[kMaxRank]) {
    Range r = {offset, offset};
    for (int d = 0; d < t.rank; ++d) {
        const Wide step = static_cast<Wide>(t.size[d] - 1) * strides[d];
        (step < 0 ? r.first : r.last) += step;
    }
    return r;
}

bool is_empty(const Task& t) {
    return std::any_of(t.size, t.size + t.rank, [](int64_t n) { return n == 0; });
}

void check_task(const Task& t, int64_t index) {
    if (t.rank < 1 || t.rank > kMaxRank) refuse(index, "rank " + std::to_string(t.rank) + ", expected 1 to 6");
    if (t.dtype < kFloat32 || t.dtype > kFloat64) refuse(index, "unknown dtype code " + std::to_string(t.dtype));
    if (t.distribution < kConstant || t.distribution > kTable)
        refuse(index, "unknown distribution code " + std::to_string(t.distribution));
    if (t.rounding != kNearest && t.rounding != kStochastic) refuse(index, "unknown rounding code " + std::to_string(t.rounding));
    Wide elements = 1;
    for (int d = 0; d < t.rank; ++d) {
        if (t.size[d] < 0) refuse(index, "negative size " + std::to_string(t.size[d]));
        elements *= t.size[d];
        if (elements > (static_cast<Wide>(1) << 60)) refuse(index, "more than 2^60 elements");
    }
    if (!std::isfinite(t.shrink) || !std::isfinite(t.perturb)) refuse(index, "shrink or perturb is not finite");
    for (float p : t.p)
        if (!std::isfinite(p)) refuse(index, "a distribution parameter is not finite");
    if (t.distribution == kUniform && t.p[1] != 0 && std::fabs(t.p[1]) < 0x1p-100f)
        refuse(index, "a uniform distribution narrower than 2^-100");
    if (elements == 0) return;

    if (t.data == 0 || t.data % static_cast<uint64_t>(kElementSize[t.dtype]) != 0)
        refuse(index, "data is null or not aligned to its dtype");
    const Range memory = range_of(t, t.memory_offset, t.memory_strides);
    if (memory.first < 0 || memory.last >= t.memory_elements)
        refuse(index, "reaches outside of its " + std::to_string(t.memory_elements) + " elements of memory");
    // Their runs are walked below, and small strides make any number of them out of a small memory.
    if (elements > t.memory_elements) refuse(index, "has more elements than its memory: it writes one of them twice");
    const Range draw = range_of(t, t.draw_offset, t.draw_strides);
    if (draw.first < 0 || draw.last > (static_cast<Wide>(1) << 62)) refuse(index, "draw index out of range");
    const Range logical = range_of(t, t.logical_offset, t.logical_strides);
    if (logical.first < 0 || logical.last > (static_cast<Wide>(1) << 62)) refuse(index, "logical index out of range");
    if (t.distribution == kTable) {
        if (t.table == 0 || t.table % 4 != 0) refuse(index, "table is null or not aligned");
        if (draw.last >= t.table_elements)
            refuse(index, "reads outside of its table of " + std::to_string(t.table_elements) + " numbers");
    }
    for (int d = 0; d < t.rank; ++d)
        if (t.size[d] > 1 && t.memory_strides[d] == 0) refuse(index, "a memory stride of 0 writes an element twice");
}

struct Bytes {
    uint64_t begin, end;
    int64_t task;
};

// Every contiguous run of bytes that a task writes.
void add_runs(const Task& t, int64_t index, std::vector<Bytes>& runs) {
    const int last = t.rank - 1;
    const bool dense = t.memory_strides[last] == 1;
    const int64_t run = dense ? t.size[last] : 1, width = kElementSize[t.dtype];
    int64_t m[kMaxRank] = {};
    while (true) {
        int64_t at = t.memory_offset;
        for (int d = 0; d < t.rank; ++d) at += m[d] * t.memory_strides[d];
        const uint64_t begin = t.data + static_cast<uint64_t>(at * width);
        runs.push_back({begin, begin + static_cast<uint64_t>(run * width), index});
        int d = dense ? last - 1 : last;
        for (; d >= 0; --d) {
            if (++m[d] < t.size[d]) break;
            m[d] = 0;
        }
        if (d < 0) return;
    }
}

bool by_begin(const Bytes& a, const Bytes& b) { return a.begin < b.begin; }

void refuse_overlap(std::vector<Bytes>& sorted) {
    std::sort(sorted.begin(), sorted.end(), by_begin);
    for (size_t i = 1; i < sorted.size(); ++i)
        if (sorted[i].begin < sorted[i - 1].end)
            refuse(std::max(sorted[i].task, sorted[i - 1].task),
                   "writes memory that task " + std::to_string(std::min(sorted[i].task, sorted[i - 1].task)) + " writes too");
}

// True where distinct indices of the box are sure to be distinct addresses: each stride passes all smaller ones.
bool is_nested(const Task& t) {
    if (t.rank == 1) return true;  // check_task refuses a stride of zero
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (int d = 0; d < t.rank; ++d)
        if (t.size[d] > 1) dims.emplace_back(std::llabs(t.memory_strides[d]), t.size[d]);
    std::sort(dims.begin(), dims.end());
    Wide reach = 0;
    for (const auto& dim : dims) {
        if (dim.first <= reach) return false;
        reach += static_cast<Wide>(dim.first) * (dim.second - 1);
    }
    return true;
}

}  // namespace

void check_tasks(const Task* tasks, int64_t count) {
    std::vector<Bytes> extents;
    for (int64_t i = 0; i < count; ++i) {
        const Task& t = tasks[i];
        check_task(t, i);
        if (is_empty(t)) continue;
        const Range r = range_of(t, t.memory_offset, t.memory_strides);
        const int64_t width = kElementSize[t.dtype];
        extents.push_back({t.data + static_cast<uint64_t>(static_cast<int64_t>(r.first) * width),
                           t.data + static_cast<uint64_t>((static_cast<int64_t>(r.last) + 1) * width), i});
    }
    std::sort(extents.begin(), extents.end(), by_begin);
    // Only boxes whose extents meet, or that may meet themselves, are looked at run by run.
    for (size_t i = 0; i < extents.size();) {
        size_t j = i + 1;
        uint64_t end = extents[i].end;
        while (j < extents.size() && extents[j].begin < end) end = std::max(end, extents[j++].end);
        if (j - i > 1 || !is_nested(tasks[extents[i].task])) {
            std::vector<Bytes> runs;
            for (size_t k = i; k < j; ++k) add_runs(tasks[extents[k].task], extents[k].task, runs);
            refuse_overlap(runs);
        }
        i = j;
    }
}

}  // namespace sff
