// The bytes of a kernel and as many vector operations, none of which waits for another: how far can a machine overlap the two?
//
// A line at a time is loaded, multiplied by one and stored, with the kernels' two streams and their prefetch, and beside each
// line stand OPS exclusive-ors between registers that nothing reads (-DOPS=33; with AVX-512 of 512 bits, else two multiplies of
// 256 a line). Prints the median nanoseconds a line.
//
//   blank_loop THREADS LINES ROUNDS
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kFloats = 16, kPrefetchBytes = 2048;  // of a line; of csrc/cpu/smooth_loop.h

#define SFF_TEXT_(x) #x
#define SFF_TEXT(x) SFF_TEXT_(x)
#ifdef __AVX512F__
#define XOR(to) "vpxord %%zmm0, %%zmm1, %%zmm" #to "\n"
inline void line(float* p, float one) { _mm512_storeu_ps(p, _mm512_mul_ps(_mm512_set1_ps(one), _mm512_loadu_ps(p))); }
#else
#define XOR(to) "vpxor %%ymm0, %%ymm1, %%ymm" #to "\n"
inline void line(float* p, float one) {
    const __m256 c = _mm256_set1_ps(one);
    _mm256_storeu_ps(p, _mm256_mul_ps(c, _mm256_loadu_ps(p)));
    _mm256_storeu_ps(p + 8, _mm256_mul_ps(c, _mm256_loadu_ps(p + 8)));
}
#endif

inline void operations() { asm volatile(".rept " SFF_TEXT(OPS) "\n" XOR(2) ".endr" ::: "xmm2"); }

void run(float* p, int64_t lines, float one) {
    float* second = p + lines / 2 * kFloats;
    for (int64_t i = 0; i < lines / 2; ++i, p += kFloats, second += kFloats) {
        for (float* q : {p, second}) {
            _mm_prefetch(reinterpret_cast<const char*>(q) + kPrefetchBytes, _MM_HINT_T1);
            line(q, one);
            operations();
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const int threads = std::atoi(argv[1]), rounds = std::atoi(argv[3]);
    const int64_t lines = std::atoll(argv[2]), claim = 4096, claims = lines / claim;  // claims of 256 KiB, as the kernels'
    auto* memory = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(lines) * 64 + kPrefetchBytes));
    if (memory == nullptr) return 1;
    std::fill(memory, memory + lines * kFloats, 0.1f);
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        std::vector<std::thread> others;
        const auto work = [&](int thread) {
            for (int64_t k = thread; k < claims; k += threads) run(memory + k * claim * kFloats, claim, 1.0f);
        };
        for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
        work(0);
        for (auto& other : others) other.join();
        const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
        if (round > 0) times.push_back(ns / static_cast<double>(claims * claim));
    }
    std::sort(times.begin(), times.end());
    std::printf("%.4f\n", times[times.size() / 2]);
    std::free(memory);
    return 0;
}
