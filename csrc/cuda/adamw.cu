// The kernels of the optimizer: one launch a bucket, a grid-stride loop over its chunks.
//
// A thread takes 4 elements where parameters and states are of 4 bytes, else 8, by vector accesses where all of a task's arrays
// begin at multiples of 16 bytes, else element by element. With int8 states a warp takes a block of 256 elements: the
// largest magnitude of a block is one reduction over the warp, of bits, since those of numbers that are not negative are in
// the numbers' order and those of NaN and infinity above all others.
#include "adamw.h"

#include "adamw_unit.h"
#include "launch.h"
#include "unit.h"

namespace sff {
namespace {

using namespace SFF_ISA;

template <class P, class S>
constexpr int kAdamWUnit = sizeof(P) == 4 && sizeof(S) == 4 ? 4 : 8;

// What a thread keeps of its chunk.
struct Step {
    const AdamWLaunch& launch;
    const AdamWTask& task;
    AdamWCoefficients<Scalar> coefficients;
    int64_t begin;  // of the chunk, in elements of the task
    bool aligned;
};

template <class T>
__device__ __forceinline__ T* array_at(const Step& step, uint64_t base, int64_t element) {
    return reinterpret_cast<T*>(at_address(step.launch.memory, base)) + element;
}

// N elements from `element` on: as vectors, or the first `count` of them one by one with zeros behind.
template <class T, int N>
__device__ __forceinline__ void load(const Step& step, uint64_t base, int64_t element, int count, bool vectors, Packed<T, N>& to) {
    const T* from = array_at<const T>(step, base, element);
    if (vectors) {
        if constexpr (Packed<T, N>::size == 2) {
            const uint2 v = *reinterpret_cast<const uint2*>(from);
            to.words[0] = v.x;
            to.words[1] = v.y;
        } else {
            SFF_UNROLL
            for (int i = 0; i < Packed<T, N>::size; i += 4) {
                const uint4 v = reinterpret_cast<const uint4*>(from)[i / 4];
                to.words[i] = v.x;
                to.words[i + 1] = v.y;
                to.words[i + 2] = v.z;
                to.words[i + 3] = v.w;
            }
        }
    } else {
        SFF_UNROLL
        for (int i = 0; i < Packed<T, N>::size; ++i) to.words[i] = 0;
        SFF_UNROLL
        for (int i = 0; i < N; ++i) {
            if (i >= count) continue;
            if constexpr (sizeof(T) == 4) put_bits<T>(to.words, i, reinterpret_cast<const uint32_t*>(from)[i]);
            if constexpr (sizeof(T) == 2) put_bits<T>(to.words, i, reinterpret_cast<const uint16_t*>(from)[i]);
            if constexpr (sizeof(T) == 1) put_bits<T>(to.words, i, reinterpret_cast<const uint8_t*>(from)[i]);
        }
    }
}

template <class T, int N>
__device__ __forceinline__ void store(const Step& step, uint64_t base, int64_t element, int count, bool vectors, const Packed<T, N>& from) {
    T* to = array_at<T>(step, base, element);
    if (vectors) {
        if constexpr (Packed<T, N>::size == 2) {
            *reinterpret_cast<uint2*>(to) = make_uint2(from.words[0], from.words[1]);
        } else {
            SFF_UNROLL
            for (int i = 0; i < Packed<T, N>::size; i += 4)
                reinterpret_cast<uint4*>(to)[i / 4] = make_uint4(from.words[i], from.words[i + 1], from.words[i + 2], from.words[i + 3]);
        }
    } else {
        SFF_UNROLL
        for (int i = 0; i < N; ++i) {
            if (i >= count) continue;
            const uint32_t bits = element_bits<T>(from.words, i);
            if constexpr (sizeof(T) == 4) reinterpret_cast<uint32_t*>(to)[i] = bits;
            if constexpr (sizeof(T) == 2) reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(bits);
            if constexpr (sizeof(T) == 1) reinterpret_cast<uint8_t*>(to)[i] = static_cast<uint8_t>(bits);
        }
    }
}

// Rounding numbers of the eight elements from `element` on, a multiple of eight.
__device__ __forceinline__ void rounding_numbers(const Step& step, int64_t element, uint32_t (&halves)[4]) {
    const uint64_t at = static_cast<uint64_t>(element);
    const PhiloxKey key = philox_key(not_hoisted(step.task.round_seed), step.task.round_stream, static_cast<uint32_t>(at >> 35));
    rounding_halves(static_cast<uint32_t>(at >> 3), 0, key, halves);
}

__device__ __forceinline__ uint32_t dither_at(const Step& step, int64_t element) {
    return step.task.dither + static_cast<uint32_t>(element) * kDitherStep;
}

// The first `count` of a unit's elements, with fp32 or bfloat16 states.
template <class P, class S, bool Amsgrad, int Store>
__device__ __forceinline__ void dense_unit(const Step& step, int64_t at, int count) {
    constexpr int width = kAdamWUnit<P, S>;
    const AdamWTask& t = step.task;
    const bool vectors = step.aligned && count >= width;
    Packed<P, width> param, grad, compensation;
    Packed<S, width> exp_avg, exp_avg_sq, largest;
    load(step, t.param, at, count, vectors, param);
    load(step, t.grad, at, count, vectors, grad);
    load(step, t.exp_avg, at, count, vectors, exp_avg);
    load(step, t.exp_avg_sq, at, count, vectors, exp_avg_sq);
    if constexpr (Amsgrad) load(step, t.max_exp_avg_sq, at, count, vectors, largest);
    if constexpr (Store == kStoreCompensated) load(step, t.compensation, at, count, vectors, compensation);
    uint32_t halves[4] = {};
    if constexpr (Store == kStoreStochastic) rounding_numbers(step, at, halves);
    const uint32_t dither = dither_at(step, at);
    SFF_UNROLL
    for (int j = 0; j < width / 2; ++j) {
        float p[2], m[2], v[2], x[2] = {};
        SFF_UNROLL
        for (int k = 0; k < 2; ++k) {
            const int i = 2 * j + k;
            p[k] = number<P>(param.words, i);
            if constexpr (Store == kStoreCompensated) p[k] = p[k] + number<P>(compensation.words, i);
            m[k] = number<S>(exp_avg.words, i);
            v[k] = number<S>(exp_avg_sq.words, i);
            if constexpr (Amsgrad) x[k] = number<S>(largest.words, i);
            adamw<Scalar, Amsgrad>(p[k], number<P>(grad.words, i), m[k], v[k], x[k], step.coefficients);
        }
        const uint32_t here = dither + static_cast<uint32_t>(2 * j) * kDitherStep;
        put_parameters<P, Store>(param.words, compensation.words, j, p[0], p[1], halves[j % 4]);
        put_pair<S>(exp_avg.words, j, m[0], m[1]);
        put_second_moments<S>(exp_avg_sq.words, j, v[0], v[1], here);
        if constexpr (Amsgrad) put_second_moments<S>(largest.words, j, x[0], x[1], here);
    }
    store(step, t.param, at, count, vectors, param);
    store(step, t.exp_avg, at, count, vectors, exp_avg);
    store(step, t.exp_avg_sq, at, count, vectors, exp_avg_sq);
    if constexpr (Amsgrad) store(step, t.max_exp_avg_sq, at, count, vectors, largest);
    if constexpr (Store == kStoreCompensated) store(step, t.compensation, at, count, vectors, compensation);
}

// The scale of a block, read by one lane for all of the warp: it writes it later.
__device__ __forceinline__ float scale_of(const Step& step, uint64_t scales, int64_t block, int lane) {
    float scale = 0.0f;
    if (lane == 0) scale = *array_at<const float>(step, scales, block);
    return __shfl_sync(kAllLanes, scale, 0);
}

// Stores the scale of the block that the warp's numbers make, and returns it.
__device__ __forceinline__ float new_scale(const Step& step, uint64_t scales, int64_t block, int lane, uint32_t largest) {
    largest = __reduce_max_sync(kAllLanes, largest);
    const float scale = block_scale(from_bits(largest), largest < 0x7f800000u);
    if (lane == 0) *array_at<float>(step, scales, block) = scale;
    return scale;
}

// Eight elements of a block of 256, with int8 states: `count` of them, which may be none, from `at` on. A whole warp calls it.
template <class P, bool Amsgrad, int Store>
__device__ __forceinline__ void quantized_unit(const Step& step, int64_t at, int count) {
    constexpr int width = kAdamWUnit<P, Int8>;
    static_assert(width * kWarp == kQuantizedBlock, "a warp takes a block");
    const AdamWTask& t = step.task;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t block = at / kQuantizedBlock;
    const bool vectors = step.aligned && count >= width;
    Packed<P, width> param, grad, compensation;
    Packed<Int8, width> codes;
    load(step, t.param, at, count, vectors, param);
    load(step, t.grad, at, count, vectors, grad);
    if constexpr (Store == kStoreCompensated) load(step, t.compensation, at, count, vectors, compensation);
    float m[width], v[width], x[width] = {};
    load(step, t.exp_avg, at, count, vectors, codes);
    const float m_scale = scale_of(step, t.exp_avg_scale, block, lane);
    SFF_UNROLL
    for (int i = 0; i < width; ++i) m[i] = decode_signed<Scalar>(element_bits<Int8>(codes.words, i), m_scale);
    load(step, t.exp_avg_sq, at, count, vectors, codes);
    const float v_scale = scale_of(step, t.exp_avg_sq_scale, block, lane);
    SFF_UNROLL
    for (int i = 0; i < width; ++i) v[i] = decode_unsigned<Scalar>(element_bits<Int8>(codes.words, i), v_scale);
    if constexpr (Amsgrad) {
        load(step, t.max_exp_avg_sq, at, count, vectors, codes);
        const float x_scale = scale_of(step, t.max_exp_avg_sq_scale, block, lane);
        SFF_UNROLL
        for (int i = 0; i < width; ++i) x[i] = decode_unsigned<Scalar>(element_bits<Int8>(codes.words, i), x_scale);
    }
    uint32_t halves[4] = {};
    if constexpr (Store == kStoreStochastic) rounding_numbers(step, at, halves);
    uint32_t m_largest = 0, v_largest = 0, x_largest = 0;
    SFF_UNROLL
    for (int j = 0; j < width / 2; ++j) {
        float p[2];
        SFF_UNROLL
        for (int k = 0; k < 2; ++k) {
            const int i = 2 * j + k;
            p[k] = number<P>(param.words, i);
            if constexpr (Store == kStoreCompensated) p[k] = p[k] + number<P>(compensation.words, i);
            adamw<Scalar, Amsgrad>(p[k], number<P>(grad.words, i), m[i], v[i], x[i], step.coefficients);
            m_largest = max(m_largest, to_bits(m[i]) & 0x7fffffffu);
            v_largest = max(v_largest, to_bits(v[i]) & 0x7fffffffu);
            if constexpr (Amsgrad) x_largest = max(x_largest, to_bits(x[i]) & 0x7fffffffu);
        }
        put_parameters<P, Store>(param.words, compensation.words, j, p[0], p[1], halves[j % 4]);
    }
    store(step, t.param, at, count, vectors, param);
    if constexpr (Store == kStoreCompensated) store(step, t.compensation, at, count, vectors, compensation);
    const uint32_t dither = dither_at(step, at);
    put_codes<true>(m, new_scale(step, t.exp_avg_scale, block, lane, m_largest), dither, codes.words);
    store(step, t.exp_avg, at, count, vectors, codes);
    put_codes<false>(v, new_scale(step, t.exp_avg_sq_scale, block, lane, v_largest), dither, codes.words);
    store(step, t.exp_avg_sq, at, count, vectors, codes);
    if constexpr (Amsgrad) {
        put_codes<false>(x, new_scale(step, t.max_exp_avg_sq_scale, block, lane, x_largest), dither, codes.words);
        store(step, t.max_exp_avg_sq, at, count, vectors, codes);
    }
}

// All of a warp's lanes stay in the loop as long as one of them has elements: its instructions need all of them.
template <class P, class S, bool Amsgrad, int Store>
__device__ __forceinline__ void do_chunk(const Step& step, int count) {
    constexpr int width = kAdamWUnit<P, S>;
    constexpr bool quantized = std::is_same<S, Int8>::value;
    const int thread = static_cast<int>(threadIdx.x), stride = static_cast<int>(blockDim.x) * width;
    const int until = quantized ? (count + static_cast<int>(kQuantizedBlock) - 1) / static_cast<int>(kQuantizedBlock) * static_cast<int>(kQuantizedBlock) : count;
    SFF_ONCE
    for (int at = thread * width; at < until; at += stride) {
        if constexpr (quantized) {
            quantized_unit<P, Amsgrad, Store>(step, step.begin + at, count - at);
        } else {
            dense_unit<P, S, Amsgrad, Store>(step, step.begin + at, count - at);
        }
    }
}

// Blocks of a multiprocessor that the registers are cut for: half of its threads, three eighths or a quarter where a thread
// holds more arrays. With fewer registers each of these would spill. Memory is what limits, and a thread has its whole unit of
// every array in flight: a quarter of the threads have asked for 56 bytes or more each, 28 KiB a multiprocessor.
template <class P, class S, bool Amsgrad>
constexpr int kAdamWResident = std::is_same<S, Int8>::value ? (Amsgrad ? 2 : 3) : Amsgrad && kAdamWUnit<P, S> == 8 ? 3 : 4;

template <class P, class S, bool Amsgrad, int Store>
__global__ void __launch_bounds__(kThreads, (kAdamWResident<P, S, Amsgrad>)) adamw_kernel(const AdamWLaunch launch) {
    if (launch.found_inf != nullptr && *launch.found_inf != 0.0f) return;
    for (uint32_t c = blockIdx.x; c < launch.count; c += gridDim.x) {
        const AdamWChunk& chunk = launch.chunks[c];
        const AdamWTask& t = launch.tasks[chunk.task];
        const uint64_t addresses =
            t.param | t.grad | t.compensation | t.exp_avg | t.exp_avg_sq | t.max_exp_avg_sq;
        Step step = {launch, t, AdamWCoefficients<Scalar>(t), chunk.begin, addresses % 16 == 0};
        if (launch.factor != nullptr) step.coefficients.grad_scale = step.coefficients.grad_scale * *launch.factor;
        do_chunk<P, S, Amsgrad, Store>(step, chunk.count);
    }
}

// ---------------------------------------------------------------------- clipping
template <class P>
__device__ __forceinline__ double sum_of(const P* grad, int count, int lane) {
    double sum = 0;
    SFF_ONCE
    for (int i = lane; i < count; i += kSumWidth) {
        const double x = static_cast<double>(widen(grad[i]));
        sum += x * x;
    }
    return sum;
}

// Half a warp sums a piece, lane j its elements j modulo 16.
__global__ void __launch_bounds__(kThreads) sum_kernel(const SumLaunch launch) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
    const int lane = static_cast<int>(thread % kSumWidth);
    // All lanes of a warp stay in the loop as long as one of them has a piece.
    for (uint32_t first = thread / kWarp * (kWarp / kSumWidth); first < launch.count; first += all / kSumWidth) {
        const uint32_t piece = first + thread % kWarp / kSumWidth;
        double sum = 0;
        if (piece < launch.count) {
            const AdamWChunk& chunk = launch.pieces[piece];
            const AdamWTask& t = launch.tasks[chunk.task];
            const char* grad = at_address(launch.memory, t.grad) + chunk.begin * (t.param_dtype == kFloat32 ? 4 : 2);
            if (t.param_dtype == kFloat32) {
                sum = sum_of(reinterpret_cast<const float*>(grad), chunk.count, lane);
            } else if (t.param_dtype == kBFloat16) {
                sum = sum_of(reinterpret_cast<const BFloat16*>(grad), chunk.count, lane);
            } else {
                sum = sum_of(reinterpret_cast<const Float16*>(grad), chunk.count, lane);
            }
        }
        SFF_UNROLL
        for (int half = kSumWidth / 2; half > 0; half /= 2) sum += __shfl_down_sync(kAllLanes, sum, half);
        if (lane == 0 && piece < launch.count) launch.sums[piece] = sum;
    }
}

// One block, of which one thread adds the pieces' sums in order.
__global__ void clip_kernel(const double* sums, uint32_t count, double grad_scale, const float* loss_scale, double max_norm,
                            Clipped* clipped) {
    if (threadIdx.x != 0) return;
    if (loss_scale != nullptr) grad_scale = 1.0 / static_cast<double>(*loss_scale);
    double total = 0;
    for (uint32_t i = 0; i < count; ++i) total += sums[i];
    const Clipping c = clipping(total, grad_scale, max_norm);
    clipped->norm = c.norm;
    clipped->factor = c.factor;
}

// ---------------------------------------------------------------------- launches
using AdamWKernel = void (*)(AdamWLaunch);

template <class P, class S, int Store>
AdamWKernel kernel_for(const AdamWBucket& bucket) {
    return bucket.amsgrad ? adamw_kernel<P, S, true, Store> : adamw_kernel<P, S, false, Store>;
}

template <class P, int Store>
AdamWKernel kernel_for_states(const AdamWBucket& bucket) {
    switch (bucket.state_type) {
        case kStateFloat32: return kernel_for<P, float, Store>(bucket);
        case kStateBFloat16: return kernel_for<P, BFloat16, Store>(bucket);
        default: return kernel_for<P, Int8, Store>(bucket);
    }
}

AdamWKernel kernel_of(const AdamWBucket& bucket) {
    if (bucket.param_dtype == kFloat32) return kernel_for_states<float, kStoreNearest>(bucket);
    if (bucket.param_dtype == kFloat16)
        return bucket.storing == kStoreCompensated ? kernel_for_states<Float16, kStoreCompensated>(bucket)
                                                   : kernel_for_states<Float16, kStoreNearest>(bucket);
    switch (bucket.storing) {
        case kStoreStochastic: return kernel_for_states<BFloat16, kStoreStochastic>(bucket);
        case kStoreCompensated: return kernel_for_states<BFloat16, kStoreCompensated>(bucket);
        default: return kernel_for_states<BFloat16, kStoreNearest>(bucket);
    }
}

Origin origin_of(const AdamWTask* tasks) {
    return {const_cast<char*>(reinterpret_cast<const char*>(tasks)), reinterpret_cast<uint64_t>(tasks)};
}

}  // namespace

cudaError_t adamw_shape_of(const AdamWBucket& bucket, Shape& shape) { return resident_shape(kernel_of(bucket), bucket.count, shape); }

AdamWLaunch arguments_of(const AdamWBucket& bucket, const AdamWTask* tasks, const AdamWChunk* chunks, const float* factor,
                         const float* found_inf) {
    return {tasks, chunks + bucket.first, static_cast<uint32_t>(bucket.count), origin_of(tasks), factor, found_inf};
}

SumLaunch sum_arguments(int64_t pieces, const AdamWTask* tasks, const AdamWChunk* table, double* sums) {
    return {tasks, table, static_cast<uint32_t>(pieces), origin_of(tasks), sums};
}

cudaError_t launch_adamw(const AdamWBucket& bucket, const AdamWTask* tasks, const AdamWChunk* chunks, const float* factor,
                         const float* found_inf, Shape shape, cudaStream_t stream) {
    return checked_launch(kernel_of(bucket), shape, stream, arguments_of(bucket, tasks, chunks, factor, found_inf));
}

cudaError_t launch_clipping(int64_t pieces, const AdamWTask* tasks, const AdamWChunk* table, double* sums, double grad_scale,
                            const float* loss_scale, double max_norm, Clipped* clipped, cudaStream_t stream) {
    Shape shape = {};
    constexpr int64_t a_block = kThreads / kSumWidth;
    cudaError_t error = resident_shape(sum_kernel, (pieces + a_block - 1) / a_block, shape);
    if (error == cudaSuccess && pieces > 0)
        error = checked_launch(sum_kernel, shape, stream, sum_arguments(pieces, tasks, table, sums));
    if (error != cudaSuccess) return error;
    const double* partial = sums;
    return checked_launch(clip_kernel, Shape{1, kWarp}, stream, partial, static_cast<uint32_t>(pieces), grad_scale, loss_scale, max_norm, clipped);
}

}  // namespace sff
