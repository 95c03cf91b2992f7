// The kernels of the CUDA backend: one launch a bucket, a grid-stride loop over its chunks.
//
// A run is a head up to the first aligned vector, units of 128-bit accesses, and a tail. In head and tail a thread takes
// whole blocks of draws, so that each Philox block is computed once wherever address and draw are congruent modulo four
// elements. Elsewhere a unit begins inside a block: a thread computes as many blocks as it has elements for, 1 or 2, and the
// draws beyond them come from the warp's next thread; the last one has none and only gives. Rounding numbers are handed on in
// the same way. Scattered elements are done one a thread, each with its own block.
#include "smooth.h"

#include "global.h"
#include "unit.h"

namespace sff {
namespace {

using namespace SFF_ISA;

// What a thread keeps of its run. The rest is read or computed again where it is needed, since registers are what limits
// the number of threads: addresses, parameters of truncated normals, the key of the rounding stream.
struct Run {
    const Launch& launch;
    const Task& task;
    const Chunk& chunk;
    PhiloxKey draw_key;
    Factors factors;
    float p[2];
};

__device__ __forceinline__ char* data_of(const Run& run) { return at_address(run.launch.memory, run.chunk.data); }

// kTable: the draw of element 0.
__device__ __forceinline__ const float* table_of(const Run& run) {
    return reinterpret_cast<const float*>(at_address(run.launch.memory, run.task.table + 4 * run.chunk.draw));
}

template <int Kind>
__device__ __forceinline__ void draws_of_block(const Run& run, uint32_t block, float (&draws)[4]) {
    if constexpr (Kind == kUniform || Kind == kNormal) {
        const float p[8] = {run.p[0], run.p[1]};
        draws_of_block<Kind>(block, run.draw_key, p, draws);
    } else {
        draws_of_block<Kind>(block, run.draw_key, run.task.p, draws);
    }
}

// The key is made anew each time: twenty round keys more would not fit into registers.
__device__ __forceinline__ PhiloxKey rounding_key(const Run& run) {
    return philox_key(not_hoisted(run.launch.round_seed), run.task.round_stream, static_cast<uint32_t>(run.chunk.logical >> 35));
}

// The words of the unit at an address; zeros where old values are not read.
template <class T>
__device__ __forceinline__ void load_unit(const Run& run, const char* address, uint32_t (&words)[kUnitWords<T>]) {
    SFF_UNROLL
    for (int i = 0; i < kUnitWords<T>; i += 4) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (reads_old<T>(run.factors)) v = reinterpret_cast<const uint4*>(address)[i / 4];
        words[i] = v.x;
        words[i + 1] = v.y;
        words[i + 2] = v.z;
        words[i + 3] = v.w;
    }
}

template <class T>
__device__ __forceinline__ void store_unit(char* address, const uint32_t (&words)[kUnitWords<T>]) {
    SFF_UNROLL
    for (int i = 0; i < kUnitWords<T>; i += 4)
        reinterpret_cast<uint4*>(address)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
}

// What lies beyond a thread's numbers: the first ones of the warp's next thread.
template <class N, int Count, int Of>
__device__ __forceinline__ void take_over(const N (&mine)[Of], N (&beyond)[Count]) {
    static_assert(Count <= Of, "a thread gives what it has");
    SFF_UNROLL
    for (int i = 0; i < Count; ++i) beyond[i] = __shfl_down_sync(kAllLanes, mine[i], 1);
}

// The draws of the blocks that the elements from `at` on begin in; of constants and stored values, those of the elements.
template <class T, int Kind>
__device__ __forceinline__ void unit_draws(const Run& run, const Place<2>& place, const float* table, int at,
                                           float (&draws)[kUnit<T>]) {
    SFF_UNROLL
    for (int j = 0; j < kUnit<T>; j += 4) {
        float here[4];
        if constexpr (kRandom<Kind>) draws_of_block<Kind>(run, place.block_of(at) + static_cast<uint32_t>(j / 4), here);
        SFF_UNROLL
        for (int i = 0; i < 4; ++i) {
            if constexpr (kRandom<Kind>) draws[j + i] = here[i];
            if constexpr (Kind == kConstant) draws[j + i] = run.p[0];
            if constexpr (Kind == kTable) draws[j + i] = table[at + j + i];
        }
    }
}

// Units of the elements [begin, end): whole ones, from an address of whole vectors on. Exchanged: draws or rounding numbers
// begin inside a block. Then all of a warp's threads stay in the loop as long as one of them has elements.
template <class T, bool Stochastic, int Kind, bool Exchanged>
__device__ __forceinline__ void units_of(const Run& run, int begin, int end) {
    constexpr int width = kUnit<T>;
    // Old values are asked for before the draws are made, where registers allow and memory is what limits.
    constexpr bool early = !Exchanged && !Stochastic && sizeof(T) < 8 && (Kind == kUniform || !kRandom<Kind>);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int lane = Exchanged ? thread % kWarp : 0;
    const int step = (Exchanged ? threads / kWarp * (kWarp - 1) : threads) * width;
    char* data = data_of(run);
    const float* table = nullptr;
    if constexpr (Kind == kTable) table = table_of(run);
    const Place<2> place(run.chunk.draw);
    const Place<3> rounding(run.chunk.logical);
    SFF_ONCE
    for (int at = begin + (Exchanged ? thread / kWarp * (kWarp - 1) + lane : thread) * width; at - lane * width < end; at += step) {
        const bool mine = !Exchanged || (lane < kWarp - 1 && at < end);
        char* address = data + static_cast<int64_t>(at) * static_cast<int64_t>(sizeof(T));
        uint32_t words[kUnitWords<T>];
        if (early && mine) load_unit<T>(run, address, words);
        uint32_t halves[4] = {};
        if constexpr (Stochastic) rounding_halves(rounding.block_of(at), 0, rounding_key(run), halves);
        float draws[width];
        unit_draws<T, Kind>(run, place, table, Kind == kTable && !mine ? begin : at, draws);
        if constexpr (Exchanged && Stochastic) {
            uint32_t beyond[4];
            take_over(halves, beyond);
            shift_halves(rounding.phase_of(begin), beyond, halves);
        }
        if constexpr (Exchanged && kRandom<Kind>) {
            float beyond[3];
            take_over(draws, beyond);
            shift_draws(place.phase_of(begin), beyond, draws);
        }
        if (!mine) continue;
        if constexpr (!early) load_unit<T>(run, address, words);
        smooth_unit<T, Stochastic>(words, run.factors, draws, halves);
        store_unit<T>(address, words);
    }
}

// Those of the unit's elements from `first` on that lie in [begin, end); `first` is where a block of draws begins.
template <class T, bool Stochastic, int Kind>
__device__ __forceinline__ void part_of_unit(const Run& run, int first, int begin, int end) {
    constexpr int width = kUnit<T>;
    const Place<2> place(run.chunk.draw);
    const Place<3> rounding(run.chunk.logical);
    uint32_t halves[4] = {};
    if constexpr (Stochastic) rounding_halves(rounding.block_of(first), rounding.phase_of(first), rounding_key(run), halves);
    T* data = reinterpret_cast<T*>(data_of(run));
    SFF_UNROLL
    for (int j = 0; j < width; j += 4) {
        float draws[4] = {};
        if constexpr (kRandom<Kind>) draws_of_block<Kind>(run, place.block_of(first + j), draws);
        SFF_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int at = first + j + i;
            if (at < begin || at >= end) continue;
            float draw = Kind == kConstant ? run.p[0] : draws[i];
            if constexpr (Kind == kTable) draw = table_of(run)[at];
            data[at] = smoothed<T, Stochastic>(data[at], run.factors, draw, halves[(i + j) / 2 % 4] >> (16 * (i % 2)) & 0xffffu);
        }
    }
}

// Elements [0, head) and [tail, count), each in groups that begin where a unit of draws does: one group a thread.
template <class T, bool Stochastic, int Kind>
__device__ __forceinline__ void ends_of(const Run& run, int head, int tail) {
    constexpr int width = kUnit<T>;
    const Place<2> place(run.chunk.draw);
    const int count = run.chunk.count;
    // Elements of whole units before the run, in blocks of 8 (the draw's block number tells which half of a unit it is).
    const int phase = place.phase + (width == 8 ? static_cast<int>(place.block & 1) * 4 : 0);
    const int before_head = head > 0 ? (phase + head + width - 1) / width : 0;
    const int skip = (phase + tail) % width;
    const int groups = before_head + (tail < count ? (skip + count - tail + width - 1) / width : 0);
    SFF_ONCE
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += static_cast<int>(blockDim.x)) {
        const bool in_head = g < before_head;
        const int first = in_head ? g * width - phase : tail - skip + (g - before_head) * width;
        part_of_unit<T, Stochastic, Kind>(run, first, in_head ? 0 : tail, in_head ? head : count);
    }
}

template <class T, bool Stochastic, int Variant, int Kind>
__device__ __forceinline__ void run_kind(const Run& run) {
    constexpr int width = kUnit<T>;
    constexpr bool may_shift = kRandom<Kind> || Stochastic;
    const Chunk& chunk = run.chunk;
    const int count = chunk.count;
    int head = ahead_of_vectors(chunk.data, chunk.draw, static_cast<int>(sizeof(T)));
    const bool is_shifted = may_shift && shifted_at(head, chunk.draw, chunk.logical, kRandom<Kind>, Stochastic);
    // Only kernels of the variant kShifted exchange numbers; the others, which need not meet such a run, do it in blocks of draws.
    if (head > count || (is_shifted && Variant != kShifted)) head = count;
    const int tail = count - (count - head) % width;
    ends_of<T, Stochastic, Kind>(run, head, tail);
    if constexpr (may_shift && Variant == kShifted) {
        if (is_shifted) return units_of<T, Stochastic, Kind, true>(run, head, tail);
    }
    units_of<T, Stochastic, Kind, false>(run, head, tail);
}

template <class T, bool Stochastic, int Variant>
__device__ __forceinline__ void do_run(const Launch& launch, const Task& task, const Chunk& chunk) {
    Run run = {launch,
               task,
               chunk,
               launch.draw,
               {static_cast<float>(task.shrink), static_cast<float>(task.perturb), task.shrink, task.perturb},
               {task.p[0], task.p[1]}};
    philox_stream(task.stream, static_cast<uint32_t>(chunk.draw >> 34), run.draw_key);
    if constexpr (Variant != kPlain) {
        if (task.distribution == kTruncNormal)
            return task.p[7] != 0 ? run_kind<T, Stochastic, Variant, kTruncNormalTail>(run)
                                  : run_kind<T, Stochastic, Variant, kTruncNormal>(run);
    }
    switch (task.distribution) {
        case kConstant: return run_kind<T, Stochastic, Variant, kConstant>(run);
        case kTable: return run_kind<T, Stochastic, Variant, kTable>(run);
        case kUniform: return run_kind<T, Stochastic, Variant, kUniform>(run);
        default: return run_kind<T, Stochastic, Variant, kNormal>(run);
    }
}

// Element `at` of the box: everything from scratch, whatever the strides.
template <class T, bool Stochastic>
__device__ void do_scattered(const Launch& launch, const Task& task, uint64_t at) {
    uint64_t memory = static_cast<uint64_t>(task.memory_offset), draw = static_cast<uint64_t>(task.draw_offset),
             logical = static_cast<uint64_t>(task.logical_offset);
    SFF_ONCE
    for (int d = task.rank - 1; d >= 0; --d) {
        const uint64_t size = static_cast<uint64_t>(task.size[d]), rest = at / size, m = at - rest * size;
        at = rest;
        memory += m * static_cast<uint64_t>(task.memory_strides[d]);
        draw += m * static_cast<uint64_t>(task.draw_strides[d]);
        logical += m * static_cast<uint64_t>(task.logical_strides[d]);
    }
    float r;
    if (task.distribution == kConstant) {
        r = task.p[0];
    } else if (task.distribution == kTable) {
        r = *reinterpret_cast<const float*>(at_address(launch.memory, task.table + 4 * draw));
    } else {
        float draws[4];
        draw_block(task, draw >> 2, draws);
        r = (draw & 2) != 0 ? ((draw & 1) != 0 ? draws[3] : draws[2]) : ((draw & 1) != 0 ? draws[1] : draws[0]);
    }
    uint32_t halves[4] = {};
    if constexpr (Stochastic) {
        const PhiloxKey key = philox_key(launch.round_seed, task.round_stream, static_cast<uint32_t>(logical >> 35));
        rounding_halves(static_cast<uint32_t>(logical >> 3), 0, key, halves);
        halves[0] = (logical & 4) != 0 ? ((logical & 2) != 0 ? halves[3] : halves[2]) : ((logical & 2) != 0 ? halves[1] : halves[0]);
    }
    const Factors factors = {static_cast<float>(task.shrink), static_cast<float>(task.perturb), task.shrink, task.perturb};
    T* element = reinterpret_cast<T*>(at_address(launch.memory, task.data + memory * sizeof(T)));
    *element = smoothed<T, Stochastic>(*element, factors, r, ((logical & 1) != 0 ? halves[0] >> 16 : halves[0]) & 0xffffu);
}

// Blocks of a multiprocessor that the registers are cut for: 75 % of its threads; five eighths with truncated normals among the
// draws; half for stochastic rounding and where numbers are exchanged, three eighths for both. With fewer each would spill.
template <bool Stochastic, int Variant>
constexpr int kResident = Variant == kShifted ? (Stochastic ? 3 : 4) : Stochastic ? 4 : Variant == kTruncated ? 5 : 6;

template <class T, bool Stochastic, int Variant>
__global__ void __launch_bounds__(kThreads, (kResident<Stochastic, Variant>)) smooth_kernel(const Launch launch) {
    for (uint32_t c = blockIdx.x; c < launch.count; c += gridDim.x) {
        const Chunk& chunk = launch.chunks[c];
        if (chunk.task >= 0) {
            do_run<T, Stochastic, Variant>(launch, launch.tasks[chunk.task], chunk);
        } else {
            const Task& task = launch.tasks[~chunk.task];
            SFF_ONCE
            for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += static_cast<int>(blockDim.x))
                do_scattered<T, Stochastic>(launch, task, chunk.draw + static_cast<uint64_t>(i));
        }
    }
}

using Kernel = void (*)(Launch);

template <class T, bool Stochastic>
Kernel kernel_for(const Bucket& bucket) {
    switch (bucket.variant) {
        case kShifted: return smooth_kernel<T, Stochastic, kShifted>;
        case kTruncated: return smooth_kernel<T, Stochastic, kTruncated>;
        default: return smooth_kernel<T, Stochastic, kPlain>;
    }
}

Kernel kernel_of(const Bucket& bucket) {
    const bool stochastic = bucket.rounding == kStochastic;
    switch (bucket.dtype) {
        case kFloat32: return kernel_for<float, false>(bucket);
        case kFloat64: return kernel_for<double, false>(bucket);
        case kBFloat16: return stochastic ? kernel_for<BFloat16, true>(bucket) : kernel_for<BFloat16, false>(bucket);
        default: return stochastic ? kernel_for<Float16, true>(bucket) : kernel_for<Float16, false>(bucket);
    }
}

}  // namespace

cudaError_t has_kernel(const Bucket& bucket) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel_of(bucket));
}

cudaError_t shape_of(const Bucket& bucket, Shape& shape) { return resident_shape(kernel_of(bucket), bucket.count, shape); }

Launch arguments_of(const Bucket& bucket, const Task* tasks, const Chunk* chunks) {
    Launch arguments;
    arguments.tasks = tasks;
    arguments.chunks = chunks + bucket.first;
    arguments.count = static_cast<uint32_t>(bucket.count);
    arguments.memory = {reinterpret_cast<char*>(bucket.memory), bucket.memory};
    arguments.draw = philox_key(bucket.seed, 0, 0);
    arguments.round_seed = bucket.round_seed;
    return arguments;
}

cudaError_t launch(const Bucket& bucket, const Task* tasks, const Chunk* chunks, Shape shape, cudaStream_t stream) {
    if (shape.block % kWarp != 0) return cudaErrorInvalidValue;  // the threads of a warp exchange numbers
    Launch arguments = arguments_of(bucket, tasks, chunks);
    void* list[] = {&arguments};
    const cudaError_t error = cudaLaunchKernel(kernel_of(bucket), dim3(shape.grid), dim3(shape.block), list, 0, stream);
    return error == cudaSuccess ? cudaPeekAtLastError() : error;
}

}  // namespace sff
