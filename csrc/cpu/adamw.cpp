#include "adamw.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "../core/task.h"
#include "parallel.h"
#include "smooth.h"

namespace sff {
namespace {

constexpr Grain kGrain = {kSumPiece, 16 * kSumPiece, 128 << 10};  // elements
static_assert(kGrain.least % kQuantizedBlock == 0, "a claim is whole blocks");

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

int each(const std::vector<Piece>& pieces, int threads, const std::function<void(size_t)>& work) {
    return share_out(static_cast<int64_t>(pieces.size()), {1, threads},
                     [&](int64_t i, int64_t) { work(static_cast<size_t>(i)); });
}

int64_t elements_of(const AdamWTask* tasks, int64_t count) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += tasks[i].elements;
    return total;
}

}  // namespace

int adamw(const AdamWTask* tasks, int64_t count, int threads, const AdamWKernel& kernel) {
    const Shares shares = shares_of(elements_of(tasks, count), threads, kGrain);
    const std::vector<Piece> pieces = cut(tasks, count, shares.claim);
    return each(pieces, shares.threads, [&](size_t i) { kernel.step(tasks[pieces[i].task], pieces[i].begin, pieces[i].end); });
}

double sum_of_squares(const AdamWTask* tasks, int64_t count, int threads, const AdamWKernel& kernel) {
    const std::vector<Piece> pieces = cut(tasks, count, kSumPiece);
    std::vector<double> sums(pieces.size());
    each(pieces, shares_of(elements_of(tasks, count), threads, kGrain).threads,
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
