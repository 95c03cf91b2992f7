#include "smooth.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "float_environment.h"
#include "parallel.h"

namespace sff {
namespace {

constexpr int64_t kLeastClaim = 256 << 10;  // bytes that a thread claims at a time: about 10 us of work
constexpr int64_t kMostClaim = 1 << 20;     // longer streams of memory, where there is work enough for an even end
constexpr int64_t kClaims = 32;             // that a thread has at the least, before they grow
constexpr int64_t kPerThread = 1 << 20;     // bytes below which a further thread costs more than it brings
constexpr int64_t kAlign = 64;              // parts of a box begin at multiples of this many elements

int64_t elements_of(const Task& t) {
    int64_t n = 1;
    for (int d = 0; d < t.rank; ++d) n *= t.size[d];
    return n;
}

}  // namespace

int smooth(const Task* tasks, int64_t count, int threads, const Kernel& kernel) {
    // Work is cut by bytes over all tasks: claim k is bytes [k, k + 1) * claim of their concatenation.
    std::vector<int64_t> starts(static_cast<size_t>(count) + 1, 0);
    for (int64_t i = 0; i < count; ++i)
        starts[static_cast<size_t>(i) + 1] = starts[static_cast<size_t>(i)] + elements_of(tasks[i]) * kElementSize[tasks[i].dtype];
    const int64_t total = starts.back();
    const int64_t claim = std::clamp(total / (std::max(threads, 1) * kClaims), kLeastClaim, kMostClaim);
    std::atomic<int64_t> next{0};
    const auto work = [&](int) {
        const FloatEnvironment environment;
        for (int64_t begin; (begin = next.fetch_add(claim, std::memory_order_relaxed)) < total;) {
            const int64_t end = std::min(begin + claim, total);
            int64_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
            for (; i < count && starts[static_cast<size_t>(i)] < end; ++i) {
                const int64_t start = starts[static_cast<size_t>(i)], stop = starts[static_cast<size_t>(i) + 1];
                const int64_t width = kElementSize[tasks[i].dtype];
                // Both neighbours of a cut round it the same way, so that every element is done once.
                const auto cut = [&](int64_t at) {
                    return at >= stop ? (stop - start) / width : at <= start ? 0 : (at - start) / width / kAlign * kAlign;
                };
                const int64_t first = cut(begin), last = cut(end);
                if (first < last) kernel.run(tasks[i], first, last);
            }
        }
    };
    const int64_t useful = std::max<int64_t>(1, total / kPerThread);
    return fork_join(static_cast<int>(std::min<int64_t>(threads, useful)), work);
}

}  // namespace sff
