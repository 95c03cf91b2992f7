#include "adamw.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "../core/task.h"
#include "float_environment.h"
#include "parallel.h"
#include "smooth.h"

namespace sff {
namespace {

constexpr int64_t kClaim = kSumPiece;      // elements that a thread claims at a time: tens of microseconds of work
constexpr int64_t kMostClaim = 16 * kClaim;  // of steps: longer streams of memory, where there is work enough for an even end
constexpr int64_t kClaims = 32;            // that a thread has at the least, before they grow
constexpr int64_t kPerThread = 128 << 10;  // elements below which a further thread costs more than it brings
static_assert(kClaim % kQuantizedBlock == 0, "a claim is whole blocks");

// A piece of one task: pieces do not depend on the number of threads, so that sums over them do not either.
struct Piece {
    int64_t task, begin, end;
};

std::vector<Piece> cut(const AdamWTask* tasks, int64_t count, int64_t claim) {
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t begin = 0; begin < tasks[i].elements; begin += claim)
            pieces.push_back({i, begin, std::min(begin + claim, tasks[i].elements)});
    return pieces;
}

int run(const std::vector<Piece>& pieces, int threads, const std::function<void(size_t)>& work) {
    int64_t elements = 0;
    for (const Piece& piece : pieces) elements += piece.end - piece.begin;
    std::atomic<size_t> next{0};
    const auto claim = [&](int) {
        const FloatEnvironment environment;
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces.size();) work(i);
    };
    const int64_t useful = std::max<int64_t>(1, elements / kPerThread);
    return fork_join(static_cast<int>(std::min<int64_t>(threads, useful)), claim);
}

}  // namespace

int adamw(const AdamWTask* tasks, int64_t count, int threads, const AdamWKernel& kernel) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += tasks[i].elements;
    const int64_t even = total / (std::max(threads, 1) * kClaims) / kClaim * kClaim;
    const std::vector<Piece> pieces = cut(tasks, count, std::clamp(even, kClaim, kMostClaim));
    return run(pieces, threads, [&](size_t i) { kernel.step(tasks[pieces[i].task], pieces[i].begin, pieces[i].end); });
}

double sum_of_squares(const AdamWTask* tasks, int64_t count, int threads, const AdamWKernel& kernel) {
    const std::vector<Piece> pieces = cut(tasks, count, kClaim);
    std::vector<double> sums(pieces.size());
    run(pieces, threads,
        [&](size_t i) { sums[i] = kernel.sum_of_squares(tasks[pieces[i].task], pieces[i].begin, pieces[i].end); });
    double total = 0;
    for (const double sum : sums) total += sum;
    return total;
}

const AdamWKernel& select_adamw(const std::string& isa) {
    const std::string name = select_kernel(isa).name;
#if defined(__x86_64__)
    if (name == "avx512+bf16") return *adamw_avx512bf16();
    if (name == "avx512") return *adamw_avx512();
    if (name == "avx2") return *adamw_avx2();
#endif
    return *adamw_portable();
}

}  // namespace sff
