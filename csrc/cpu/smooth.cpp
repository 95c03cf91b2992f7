#include "smooth.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace sff {
namespace {

constexpr Grain kGrain = {256 << 10, 1 << 20, 1 << 20};  // bytes
constexpr int64_t kAlign = 64;                           // parts of a box begin at multiples of this many elements

int64_t elements_of(const Task& t) {
    int64_t n = 1;
    for (int d = 0; d < t.rank; ++d) n *= t.size[d];
    return n;
}

}  // namespace

int smooth(const Task* tasks, int64_t count, int threads, const Kernel& kernel, const Seeds* seeds) {
    // Work is cut by bytes over all tasks: claim k is bytes [k, k + 1) * claim of their concatenation.
    std::vector<int64_t> starts(static_cast<size_t>(count) + 1, 0);
    for (int64_t i = 0; i < count; ++i)
        starts[static_cast<size_t>(i) + 1] =
            starts[static_cast<size_t>(i)] + elements_of(tasks[i]) * kElementSize[tasks[i].dtype];
    const int64_t total = starts.back();
    return share_out(total, shares_of(total, threads, kGrain), [&](int64_t begin, int64_t end) {
        int64_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
        for (; i < count && starts[static_cast<size_t>(i)] < end; ++i) {
            const int64_t start = starts[static_cast<size_t>(i)], stop = starts[static_cast<size_t>(i) + 1];
            const int64_t width = kElementSize[tasks[i].dtype];
            // Both neighbours of a cut round it the same way, so that every element is done once.
            const auto cut = [&](int64_t at) {
                return at >= stop ? (stop - start) / width : at <= start ? 0 : (at - start) / width / kAlign * kAlign;
            };
            const int64_t first = cut(begin), last = cut(end);
            if (first >= last) continue;
            Task task = tasks[i];
            if (seeds != nullptr) task.seed = seeds->draw, task.round_seed = seeds->round;
            kernel.run(task, first, last);
        }
    });
}

}  // namespace sff
