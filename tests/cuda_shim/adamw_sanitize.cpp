// The optimizer's kernels over small sizes and misalignments, on allocations of exactly the right size with sentinels in front:
// compiled with AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_cuda_adamw_shim.py.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "adamw_shim.cpp"

#include "../../csrc/cuda/adamw_resident.cu"

namespace {

constexpr uint8_t kSentinel = 0x3c;  // finite in every dtype

// Exactly `bytes` bytes from `ahead` bytes on, all of them sentinels.
struct Array {
    size_t ahead, bytes;
    std::unique_ptr<uint8_t[]> memory;
    Array(size_t ahead_, size_t bytes_) : ahead(ahead_), bytes(bytes_), memory(new uint8_t[ahead_ + bytes_]) {
        memset(memory.get(), kSentinel, ahead + bytes);
    }
    uint64_t address() const { return reinterpret_cast<uint64_t>(memory.get() + ahead); }
};

void run(int dtype, int state, int storing, bool amsgrad, int64_t n, size_t lead, int32_t largest, unsigned grid, unsigned block,
         std::vector<uint8_t>& result) {
    const size_t p = dtype == sff::kFloat32 ? 4 : 2, s = state == 0 ? 4 : state == 1 ? 2 : 1, count = static_cast<size_t>(n);
    const size_t scales = (count + 255) / 256 * 4;
    std::vector<Array> arrays;
    for (const size_t width : {p, p, p, s, s, s}) arrays.emplace_back(lead * width, count * width);
    for (int i = 0; i < 3; ++i) arrays.emplace_back(0, scales);
    sff::AdamWTask t = {};
    t.param = arrays[0].address();
    t.grad = arrays[1].address();
    if (storing == sff::kStoreCompensated) t.compensation = arrays[2].address();
    t.exp_avg = arrays[3].address();
    t.exp_avg_sq = arrays[4].address();
    if (amsgrad) t.max_exp_avg_sq = arrays[5].address();
    t.exp_avg_scale = arrays[6].address();
    t.exp_avg_sq_scale = arrays[7].address();
    if (amsgrad) t.max_exp_avg_sq_scale = arrays[8].address();
    t.elements = n;
    t.round_seed = 7;
    t.round_stream = 0x123456789abcdefull;
    t.param_dtype = dtype;
    t.state_type = state;
    t.storing = storing;
    t.dither = 12345;
    t.grad_scale = 1.0f;
    t.decay = 0.999f;
    t.beta2 = 0.999f;
    t.one_minus_beta1 = 0.1f;
    t.one_minus_beta2 = 0.001f;
    t.correction = 10.0f;
    t.eps = 1e-8f;
    t.step_size = 0.01f;
    if (sff_shim_adamw(&t, 1, largest, grid, block, nullptr) != 1) std::exit(1);
    sff::Clipped clipped;
    sff_shim_clip(&t, 1, 1.0, 1.0, &clipped);
    result.clear();
    for (const Array& array : arrays) {
        for (size_t i = 0; i < array.ahead; ++i)
            if (array.memory[i] != kSentinel) std::exit(2);
        result.insert(result.end(), array.memory.get() + array.ahead, array.memory.get() + array.ahead + array.bytes);
    }
}

// Words written by launches into memory of exactly their size, and steps prepared where they lie.
void run_resident() {
    for (const int64_t n : {1, 31, sff::kPageWords, sff::kPageWords + 1, 3 * sff::kPageWords}) {
        std::unique_ptr<uint64_t[]> from(new uint64_t[static_cast<size_t>(n)]), to(new uint64_t[static_cast<size_t>(n)]);
        for (int64_t i = 0; i < n; ++i) from[static_cast<size_t>(i)] = static_cast<uint64_t>(i) + 1;
        if (sff::launch_writing(from.get(), n, to.get(), nullptr) != cudaSuccess) std::exit(1);
        if (memcmp(from.get(), to.get(), static_cast<size_t>(n) * sizeof(uint64_t)) != 0) std::exit(3);
    }
    for (const size_t n : {1, 255, 256, 300}) {
        std::unique_ptr<sff::AdamWTask[]> tasks(new sff::AdamWTask[n]());
        std::unique_ptr<sff::AdamWOptions[]> options(new sff::AdamWOptions[n]());
        std::unique_ptr<float[]> steps(new float[n]()), scale(new float[1]{2.0f}), found(new float[1]{0.0f});
        std::unique_ptr<double[]> rate(new double[1]{0.01});
        for (size_t i = 0; i < n; ++i) {
            options[i].step = reinterpret_cast<uint64_t>(&steps[i]);
            options[i].lr = reinterpret_cast<uint64_t>(rate.get());
            options[i].rate_type = sff::kRateFloat64;
            options[i].beta1 = 0.9;
            options[i].beta2 = 0.999;
            options[i].decoupled = 1;
        }
        for (int step = 1; step <= 3; ++step) {
            found[0] = step == 2 ? 1.0f : 0.0f;  // the second one overflowed
            if (sff::launch_preparing(tasks.get(), options.get(), static_cast<int64_t>(n), scale.get(), found.get(), nullptr) !=
                cudaSuccess)
                std::exit(1);
        }
        for (size_t i = 0; i < n; ++i)
            if (steps[i] != 2.0f || tasks[i].grad_scale != 0.5f) std::exit(3);
    }
}

}  // namespace

int main() {
    run_resident();
    constexpr int storing_of[][2] = {{0, 0}, {1, 0}, {1, 1}, {1, 2}, {2, 0}, {2, 2}};
    for (const auto& [dtype, storing] : storing_of)
        for (int state = 0; state < 3; ++state)
            for (const bool amsgrad : {false, true})
                for (const int64_t n : {1, 7, 8, 33, 256, 259, 530})
                    for (const size_t lead : {0, 1, 3, 8}) {
                        std::vector<uint8_t> one, other;
                        run(dtype, state, storing, amsgrad, n, lead, 1 << 13, 1, 32, one);
                        run(dtype, state, storing, amsgrad, n, lead, 256, 2, 64, other);
                        if (one != other) {
                            std::fprintf(stderr, "launch shapes differ: dtype %d, state %d, storing %d, %lld elements\n", dtype,
                                         state, storing, static_cast<long long>(n));
                            return 1;
                        }
                    }
    std::puts("clean");
    return 0;
}
