#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "float_environment.h"

namespace sff {

int fork_join(int threads, const std::function<void(int)>& work) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) {
        try {
            others.emplace_back(work, t);
        } catch (const std::system_error&) {
            break;  // the work is claimed piece by piece, so that fewer threads do all of it
        }
    }
    work(0);
    for (auto& other : others) other.join();
    return 1 + static_cast<int>(others.size());
}

Shares shares_of(int64_t total, int threads, const Grain& grain) {
    constexpr int64_t kClaims = 32;  // a thread
    const int64_t claim = total / (std::max(threads, 1) * kClaims) / grain.least * grain.least;
    const int64_t useful = std::max<int64_t>(1, total / grain.per_thread);
    return {std::clamp(claim, grain.least, grain.most), static_cast<int>(std::min<int64_t>(threads, useful))};
}

int share_out(int64_t total, const Shares& shares, const std::function<void(int64_t, int64_t)>& work) {
    std::atomic<int64_t> next{0};
    return fork_join(shares.threads, [&](int) {
        const FloatEnvironment environment;
        for (int64_t begin; (begin = next.fetch_add(shares.claim, std::memory_order_relaxed)) < total;)
            work(begin, std::min(begin + shares.claim, total));
    });
}

}  // namespace sff
