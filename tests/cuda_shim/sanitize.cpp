// The kernels over small sizes, every misalignment and launch shape, on allocations of exactly the right size with finite
// sentinels in front: compiled with AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_cuda_shim.py.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "shim.cpp"

namespace {

constexpr int64_t kSize[] = {4, 2, 2, 8};
constexpr uint8_t kSentinel = 0x3c;  // finite in every dtype

sff::Task task_of(int dtype, int distribution, int rounding, int64_t n, int64_t shift) {
    sff::Task t = {};
    t.dtype = dtype;
    t.distribution = distribution == sff::SFF_ISA::kTruncNormalTail ? static_cast<int>(sff::kTruncNormal) : distribution;
    t.rounding = rounding;
    t.rank = 1;
    t.size[0] = n;
    t.memory_elements = n;
    t.memory_strides[0] = t.draw_strides[0] = t.logical_strides[0] = 1;
    t.draw_offset = t.logical_offset = shift;
    t.seed = t.round_seed = 7;
    t.stream = 0x123456789abcdefull;
    t.round_stream = ~t.stream;
    t.shrink = 0.7;
    t.perturb = 0.3;
    const float p[8] = {0.0f, 1.0f, -2.0f, 2.0f, 0.02275013f, 0.02275013f, 5.69e-8f, distribution == 5 ? 1.0f : 0.0f};
    for (int i = 0; i < 8; ++i) t.p[i] = p[i];
    return t;
}

void check(bool holds, const char* what, int dtype, int distribution, int64_t n, int64_t lead) {
    if (holds) return;
    std::fprintf(stderr, "%s: dtype %d, distribution %d, %lld elements, %lld ahead\n", what, dtype, distribution,
                 static_cast<long long>(n), static_cast<long long>(lead));
    std::exit(1);
}

std::unique_ptr<uint8_t[]> run(sff::Task t, int64_t lead, int32_t largest, unsigned grid, unsigned block) {
    const int64_t width = kSize[t.dtype], n = t.size[0];
    std::unique_ptr<uint8_t[]> memory(new uint8_t[static_cast<size_t>((lead + n) * width)]);
    memset(memory.get(), kSentinel, static_cast<size_t>((lead + n) * width));
    std::unique_ptr<float[]> table;
    if (t.distribution == sff::kTable) {
        table.reset(new float[static_cast<size_t>(n + t.draw_offset)]());
        t.table = reinterpret_cast<uint64_t>(table.get());
        t.table_elements = n + t.draw_offset;
    }
    t.data = reinterpret_cast<uint64_t>(memory.get() + lead * width);
    const sff::Task tasks[] = {t};
    if (sff_shim_smooth(tasks, 1, largest, grid, block) < 0) std::exit(1);
    return memory;
}

}  // namespace

int main() {
    for (int dtype = 0; dtype < 4; ++dtype)
        for (int distribution = 0; distribution <= 5; ++distribution)
            for (int rounding = 0; rounding < (kSize[dtype] == 2 ? 2 : 1); ++rounding)
                for (const int64_t n : {1, 2, 3, 7, 8, 9, 15, 17, 31, 40, 129, 333})
                    for (int64_t lead = 0; lead < 16 / kSize[dtype]; ++lead)
                        for (const int64_t shift : {0, 1, 2, 4, 7}) {
                            const sff::Task t = task_of(dtype, distribution, rounding, n, shift);
                            const auto one = run(t, lead, 1 << 14, 1, 32), other = run(t, lead, 64, 3, 96);
                            const size_t ahead = static_cast<size_t>(lead * kSize[dtype]);
                            const size_t bytes = static_cast<size_t>((lead + n) * kSize[dtype]);
                            for (size_t i = 0; i < ahead; ++i)
                                check(one[i] == kSentinel && other[i] == kSentinel, "a sentinel changed", dtype, distribution, n, lead);
                            check(memcmp(one.get(), other.get(), bytes) == 0, "launch shapes differ", dtype, distribution, n, lead);
                        }
    std::puts("clean");
    return 0;
}
