// How csrc/cpu/parallel.h shares work out, without a kernel and without a clock.
//
//   share covered TOTAL CLAIM THREADS   every part is handed out once, whole
//   share held THREADS                  a thread that is stuck in one part: the others do all the rest meanwhile
//   share claim TOTAL THREADS           how much a thread claims of a kernel with Grain {100, 400, 1000}, and how many threads
//   run
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "../../csrc/cpu/parallel.h"

namespace {

int covered(int64_t total, int64_t claim, int threads) {
    std::vector<std::atomic<int>> done(static_cast<size_t>(total));
    std::atomic<bool> whole{true};
    sff::share_out(total, {claim, threads}, [&](int64_t begin, int64_t end) {
        if (begin % claim != 0 || end != std::min(begin + claim, total)) whole = false;
        for (int64_t i = begin; i < end; ++i) ++done[static_cast<size_t>(i)];
    });
    for (const auto& times : done)
        if (times != 1) whole = false;
    std::printf("%s\n", whole ? "whole" : "not whole");
    return 0;
}

int held(int threads) {
    constexpr int kParts = 1000;
    std::mutex mutex;
    std::condition_variable changed;
    int done = 0, elsewhere = -1;
    sff::share_out(kParts, {1, threads}, [&](int64_t begin, int64_t) {
        std::unique_lock<std::mutex> lock(mutex);
        if (begin == 0) {  // stuck until all else is done; given up where nobody else will do it
            changed.wait_for(lock, std::chrono::seconds(60), [&] { return done == kParts - 1; });
            elsewhere = done;
        } else {
            ++done;
            changed.notify_all();
        }
    });
    std::printf("%d of %d\n", elsewhere, kParts - 1);
    return 0;
}

int claim(int64_t total, int threads) {
    const sff::Shares shares = sff::shares_of(total, threads, {100, 400, 1000});
    std::printf("%lld by %d\n", static_cast<long long>(shares.claim), shares.threads);
    return 0;
}

}  // namespace

int main(int count, char** given) {
    const std::vector<std::string> a(given + 1, given + count);
    if (a.size() == 4 && a[0] == "covered") return covered(std::stoll(a[1]), std::stoll(a[2]), std::stoi(a[3]));
    if (a.size() == 2 && a[0] == "held") return held(std::stoi(a[1]));
    if (a.size() == 3 && a[0] == "claim") return claim(std::stoll(a[1]), std::stoi(a[2]));
    std::fprintf(stderr, "usage: share covered TOTAL CLAIM THREADS | held THREADS | claim TOTAL THREADS\n");
    return 2;
}
