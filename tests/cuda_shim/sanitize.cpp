// The kernels over small sizes, every misalignment and launch shape, on allocations of exactly the right size with finite
// sentinels in front: compiled with AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_cuda_shim.py.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

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

void fail(const char* what, int dtype, int distribution, int rounding) {
    std::fprintf(stderr, "%s: dtype %d, distribution %d, rounding %d\n", what, dtype, distribution, rounding);
    std::exit(1);
}

struct Case {
    int64_t elements, lead, shift;
};

// Memory that ends where the parameter does, with `lead` elements of sentinels in front of it.
struct Parameter {
    size_t ahead, bytes;
    std::unique_ptr<uint8_t[]> memory;
    std::unique_ptr<float[]> table;

    Parameter(sff::Task& t, int64_t lead)
        : ahead(static_cast<size_t>(lead * kSize[t.dtype])),
          bytes(ahead + static_cast<size_t>(t.size[0] * kSize[t.dtype])),
          memory(new uint8_t[bytes]) {
        memset(memory.get(), kSentinel, bytes);
        t.data = reinterpret_cast<uint64_t>(memory.get() + ahead);
        if (t.distribution != sff::kTable) return;
        t.table_elements = t.size[0] + t.draw_offset;
        table.reset(new float[static_cast<size_t>(t.table_elements)]());
        t.table = reinterpret_cast<uint64_t>(table.get());
    }
};

// A box whose elements lie apart, in memory that ends with its last one: each thread does one of them.
void run_scattered(int dtype, int distribution, int rounding, unsigned grid, unsigned block) {
    constexpr int64_t rows = 5, columns = 7, row = 20, column = 2, lead = 3,
                      count = lead + (rows - 1) * row + (columns - 1) * column + 1;
    sff::Task t = task_of(dtype, distribution, rounding, count, 5);
    const Parameter p(t, 0);
    t.rank = 2;
    t.size[0] = rows;
    t.size[1] = columns;
    t.memory_offset = lead;
    t.memory_strides[0] = row;
    t.memory_strides[1] = column;
    t.draw_strides[0] = 1;
    t.draw_strides[1] = rows;
    t.logical_strides[0] = columns;
    t.logical_strides[1] = 1;
    if (sff_shim_smooth(&t, 1, 8, grid, block) != 1) std::exit(1);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = i - lead;
        if (at >= 0 && at % row < columns * column && at % row % column == 0) continue;
        for (int64_t byte = i * kSize[dtype]; byte < (i + 1) * kSize[dtype]; ++byte)
            if (p.memory[static_cast<size_t>(byte)] != kSentinel)
                fail("an element between changed", dtype, distribution, rounding);
    }
}

// The results of all cases, one launch shape and one chunk size.
std::vector<Parameter> run(int dtype, int distribution, int rounding, const std::vector<Case>& cases, int32_t largest,
                           unsigned grid, unsigned block) {
    std::vector<sff::Task> tasks;
    std::vector<Parameter> parameters;
    for (const Case& c : cases) {
        tasks.push_back(task_of(dtype, distribution, rounding, c.elements, c.shift));
        parameters.emplace_back(tasks.back(), c.lead);
    }
    if (sff_shim_smooth(tasks.data(), static_cast<int64_t>(tasks.size()), largest, grid, block) != 1) std::exit(1);
    for (const Parameter& p : parameters)
        for (size_t i = 0; i < p.ahead; ++i)
            if (p.memory[i] != kSentinel) fail("a sentinel changed", dtype, distribution, rounding);
    return parameters;
}

}  // namespace

int main() {
    for (int dtype = 0; dtype < 4; ++dtype)
        for (int distribution = 0; distribution <= 5; ++distribution)
            for (int rounding = 0; rounding < (kSize[dtype] == 2 ? 2 : 1); ++rounding) {
                run_scattered(dtype, distribution, rounding, 1, 32);
                run_scattered(dtype, distribution, rounding, 3, 96);
                std::vector<Case> congruent, all;  // the first take another kernel
                for (const int64_t n : {1, 3, 8, 15, 31, 40, 129, 600})
                    for (int64_t lead = 0; lead < 16 / kSize[dtype]; ++lead) {
                        congruent.push_back({n, lead, lead});
                        for (const int64_t shift : {0, 1, 2, 4, 7}) all.push_back({n, lead, shift});
                    }
                for (const auto& cases : {congruent, all}) {
                    const auto one = run(dtype, distribution, rounding, cases, 1 << 14, 1, 32);
                    const auto other = run(dtype, distribution, rounding, cases, 64, 3, 96);
                    for (size_t i = 0; i < cases.size(); ++i)
                        if (memcmp(one[i].memory.get(), other[i].memory.get(), one[i].bytes) != 0)
                            fail("launch shapes differ", dtype, distribution, rounding);
                }
            }
    std::puts("clean");
    return 0;
}
