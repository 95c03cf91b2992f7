// The loops around the optimizer's formulas, for any lane type: strips, vectors and blocks of int8 states.
#pragma once

#include "../core/adamw.h"
#include "../core/quantize.h"
#include "adamw_kernel.h"
#include "smooth_loop.h"

namespace sff {
namespace SFF_ISA {

// The arrays of a step, from some element on. P: dtype of the parameter, S: type of the states.
template <class P, class S>
struct AdamWArrays {
    P* param;
    const P* grad;
    P* compensation;
    S *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
    float *exp_avg_scale, *exp_avg_sq_scale, *max_exp_avg_sq_scale;

    AdamWArrays() = default;
    AdamWArrays(const AdamWTask& t, int64_t i)
        : param(at<P>(t.param, i)),
          grad(at<const P>(t.grad, i)),
          compensation(at<P>(t.compensation, i)),
          exp_avg(at<S>(t.exp_avg, i)),
          exp_avg_sq(at<S>(t.exp_avg_sq, i)),
          max_exp_avg_sq(at<S>(t.max_exp_avg_sq, i)),
          exp_avg_scale(at<float>(t.exp_avg_scale, i / kQuantizedBlock)),
          exp_avg_sq_scale(at<float>(t.exp_avg_sq_scale, i / kQuantizedBlock)),
          max_exp_avg_sq_scale(at<float>(t.max_exp_avg_sq_scale, i / kQuantizedBlock)) {}

private:
    // An array that a step does not have keeps its null pointer: nothing reads it.
    template <class T>
    static T* at(uint64_t address, int64_t i) {
        return address == 0 ? nullptr : reinterpret_cast<T*>(address) + i;
    }
};

// What varies from element to element besides the arrays.
template <class L>
struct AdamWNoise {
    const uint16_t* rounding;  // kStoreStochastic: bits of the first element
    typename L::U dither;      // of the first vector

    // Dither of the vector at `element`.
    static SFF_INLINE typename L::U dither_at(uint32_t step, int64_t element) {
        uint32_t lane[L::lanes];
        for (int i = 0; i < L::lanes; ++i) lane[i] = static_cast<uint32_t>(i) * kDitherStep;
        typename L::U lanes;
        memcpy(&lanes, lane, sizeof lanes);
        return L::u(step + static_cast<uint32_t>(element) * kDitherStep) + lanes;
    }
    static SFF_INLINE typename L::U next(typename L::U dither) {
        return dither + L::u(static_cast<uint32_t>(L::lanes) * kDitherStep);
    }
};

template <class L, class P, int Store>
SFF_INLINE typename L::F load_param(const P* p, const P* compensation) {
    if constexpr (Store == kStoreCompensated) return L::load(p) + L::load(compensation);
    return L::load(p);
}

template <class L, class P, int Store>
SFF_INLINE void store_params(P* p, P* compensation, typename L::F first, typename L::F second, const uint16_t* h) {
    if constexpr (Store == kStoreStochastic) {
        L::store_pair_stochastic(p, first, second, h);
    } else {
        L::store_pair(p, first, second);
        if constexpr (Store == kStoreCompensated)
            L::store_pair(compensation, first - L::load(p), second - L::load(p + L::lanes));
    }
}

template <class L, class S>
SFF_INLINE void store_second_moments(S* p, typename L::F first, typename L::F second, typename L::U dither) {
    if constexpr (std::is_same<S, BFloat16>::value) {
        L::store_upper_halves(p, dithered_bfloat16<L>(first, dither),
                              dithered_bfloat16<L>(second, AdamWNoise<L>::next(dither)));
    } else {
        L::store_pair(p, first, second);
    }
}

template <class L, class T>
SFF_INLINE void prefetch_ahead(const T* p) {
    for (int line = 0; line < static_cast<int>(sizeof(T)) * 2 * L::lanes; line += 64)
        L::prefetch(reinterpret_cast<uintptr_t>(p) + kPrefetchBytes + static_cast<uintptr_t>(line));
}

// Two vectors of elements with fp32 or bfloat16 states.
template <class L, class P, class S, bool Amsgrad, int Store>
SFF_INLINE void adamw_unit(const AdamWArrays<P, S>& a, int64_t i, const uint16_t* h, typename L::U dither,
                           const AdamWCoefficients<L>& c) {
    typename L::F p[2], m[2], v[2], x[2] = {};
    SFF_UNROLL
    for (int j = 0; j < 2; ++j) {
        const int64_t k = i + j * L::lanes;
        p[j] = load_param<L, P, Store>(a.param + k, a.compensation + k);
        m[j] = L::load(a.exp_avg + k);
        v[j] = L::load(a.exp_avg_sq + k);
        if constexpr (Amsgrad) x[j] = L::load(a.max_exp_avg_sq + k);
        adamw<L, Amsgrad>(p[j], L::load(a.grad + k), m[j], v[j], x[j], c);
    }
    prefetch_ahead<L>(a.param + i);
    prefetch_ahead<L>(a.grad + i);
    prefetch_ahead<L>(a.exp_avg + i);
    prefetch_ahead<L>(a.exp_avg_sq + i);
    store_params<L, P, Store>(a.param + i, a.compensation + i, p[0], p[1], h);
    L::store_pair(a.exp_avg + i, m[0], m[1]);
    store_second_moments<L>(a.exp_avg_sq + i, v[0], v[1], dither);
    if constexpr (Amsgrad) store_second_moments<L>(a.max_exp_avg_sq + i, x[0], x[1], dither);
}

// `count` elements less than a unit: a whole unit on copies, so that ends and middle run the same code.
template <class L, class P, class S, bool Amsgrad, int Store>
__attribute__((noinline)) void adamw_partial(const AdamWArrays<P, S>& a, int64_t i, int64_t count, const uint16_t* h,
                                             typename L::U dither, const AdamWCoefficients<L>& c) {
    constexpr int width = 2 * L::lanes;
    P param[width] = {}, grad[width] = {}, compensation[width] = {};
    S exp_avg[width] = {}, exp_avg_sq[width] = {}, max_exp_avg_sq[width] = {};
    uint16_t rounding[width] = {};
    const size_t params = sizeof(P) * static_cast<size_t>(count), states = sizeof(S) * static_cast<size_t>(count);
    memcpy(param, a.param + i, params);
    memcpy(grad, a.grad + i, params);
    memcpy(exp_avg, a.exp_avg + i, states);
    memcpy(exp_avg_sq, a.exp_avg_sq + i, states);
    if constexpr (Amsgrad) memcpy(max_exp_avg_sq, a.max_exp_avg_sq + i, states);
    if constexpr (Store == kStoreCompensated) memcpy(compensation, a.compensation + i, params);
    if constexpr (Store == kStoreStochastic) memcpy(rounding, h, sizeof(uint16_t) * static_cast<size_t>(count));
    AdamWArrays<P, S> copy;
    copy.param = param;
    copy.grad = grad;
    copy.compensation = compensation;
    copy.exp_avg = exp_avg;
    copy.exp_avg_sq = exp_avg_sq;
    copy.max_exp_avg_sq = max_exp_avg_sq;
    adamw_unit<L, P, S, Amsgrad, Store>(copy, 0, rounding, dither, c);
    memcpy(a.param + i, param, params);
    memcpy(a.exp_avg + i, exp_avg, states);
    memcpy(a.exp_avg_sq + i, exp_avg_sq, states);
    if constexpr (Amsgrad) memcpy(a.max_exp_avg_sq + i, max_exp_avg_sq, states);
    if constexpr (Store == kStoreCompensated) memcpy(a.compensation + i, compensation, params);
}

// n elements with fp32 or bfloat16 states.
template <class L, class P, class S, bool Amsgrad, int Store>
void adamw_dense(const AdamWArrays<P, S>& a, int64_t n, const AdamWNoise<L>& noise, const AdamWCoefficients<L>& c) {
    constexpr int64_t width = 2 * L::lanes;
    typename L::U dither = noise.dither;
    int64_t i = 0;
    for (; i + width <= n; i += width, dither = AdamWNoise<L>::next(AdamWNoise<L>::next(dither)))
        adamw_unit<L, P, S, Amsgrad, Store>(a, i, advance<Store == kStoreStochastic>(noise.rounding, i), dither, c);
    if (i < n)
        adamw_partial<L, P, S, Amsgrad, Store>(a, i, n - i, advance<Store == kStoreStochastic>(noise.rounding, i), dither, c);
}

// A block's largest magnitude, and whether all of it is finite.
template <class L>
struct Extent {
    typename L::F largest = L::f(0.0f), zero = L::f(0.0f);
    SFF_INLINE void add(typename L::F x) {
        largest = larger(magnitude<L>(x), largest);
        zero = fused(x, L::f(0.0f), zero);  // a NaN or an infinity times zero is NaN, and stays
    }
    SFF_INLINE float scale() const {
        const bool finite = L::largest(select_less(zero, L::f(1.0f), L::f(0.0f), L::f(1.0f))) == 0.0f;
        return block_scale(L::largest(largest), finite);
    }
};

template <class L, bool Signed>
SFF_INLINE void encode_block(const float* x, float scale, typename L::U dither, Int8* codes) {
    if (!(scale > 0.0f)) {
        memset(codes, 0, kQuantizedBlock);
        return;
    }
    const typename L::F factor = L::f(encoding_factor(scale, Signed ? kSignedTop : kUnsignedTop));
    SFF_UNROLL
    for (int k = 0; k < kQuantizedBlock; k += L::lanes, dither = AdamWNoise<L>::next(dither)) {
        const typename L::F y = L::load(x + k);
        uint8_t* out = &codes[k].code;
        if constexpr (Signed) {
            L::store_bytes(out, encode_signed<L>(y, factor));
        } else {
            L::store_bytes(out, encode_unsigned<L>(y, factor, dither));
        }
    }
}

// One whole block with int8 states.
template <class L, class P, bool Amsgrad, int Store>
SFF_INLINE void adamw_block(const AdamWArrays<P, Int8>& a, const uint16_t* h, typename L::U dither, const AdamWCoefficients<L>& c) {
    using F = typename L::F;
    alignas(64) float exp_avg[kQuantizedBlock], exp_avg_sq[kQuantizedBlock], max_exp_avg_sq[kQuantizedBlock];
    const F m_scale = L::f(*a.exp_avg_scale), v_scale = L::f(*a.exp_avg_sq_scale);
    const F x_scale = L::f(Amsgrad ? *a.max_exp_avg_sq_scale : 0.0f);
    Extent<L> m_extent, v_extent, x_extent;
    for (int i = 0; i < kQuantizedBlock; i += 2 * L::lanes) {
        F p[2];
        SFF_UNROLL
        for (int j = 0; j < 2; ++j) {
            const int k = i + j * L::lanes;
            p[j] = load_param<L, P, Store>(a.param + k, a.compensation + k);
            F m = decode_signed<L>(L::load_bytes(&a.exp_avg[k].code), m_scale);
            F v = decode_unsigned<L>(L::load_bytes(&a.exp_avg_sq[k].code), v_scale);
            F x = L::f(0.0f);
            if constexpr (Amsgrad) x = decode_unsigned<L>(L::load_bytes(&a.max_exp_avg_sq[k].code), x_scale);
            adamw<L, Amsgrad>(p[j], L::load(a.grad + k), m, v, x, c);
            m_extent.add(m);
            v_extent.add(v);
            memcpy(exp_avg + k, &m, sizeof m);
            memcpy(exp_avg_sq + k, &v, sizeof v);
            if constexpr (Amsgrad) {
                x_extent.add(x);
                memcpy(max_exp_avg_sq + k, &x, sizeof x);
            }
        }
        prefetch_ahead<L>(a.param + i);
        prefetch_ahead<L>(a.grad + i);
        store_params<L, P, Store>(a.param + i, a.compensation + i, p[0], p[1], advance<Store == kStoreStochastic>(h, i));
    }
    encode_block<L, true>(exp_avg, *a.exp_avg_scale = m_extent.scale(), dither, a.exp_avg);
    encode_block<L, false>(exp_avg_sq, *a.exp_avg_sq_scale = v_extent.scale(), dither, a.exp_avg_sq);
    if constexpr (Amsgrad)
        encode_block<L, false>(max_exp_avg_sq, *a.max_exp_avg_sq_scale = x_extent.scale(), dither, a.max_exp_avg_sq);
}

// A parameter's last block, shorter than the others: a whole one on copies; the zeros behind it change no scale.
template <class L, class P, bool Amsgrad, int Store>
__attribute__((noinline)) void adamw_last_block(const AdamWArrays<P, Int8>& a, int64_t count, const uint16_t* h, typename L::U dither,
                                                const AdamWCoefficients<L>& c) {
    P param[kQuantizedBlock] = {}, grad[kQuantizedBlock] = {}, compensation[kQuantizedBlock] = {};
    Int8 exp_avg[kQuantizedBlock] = {}, exp_avg_sq[kQuantizedBlock] = {}, max_exp_avg_sq[kQuantizedBlock] = {};
    uint16_t rounding[kQuantizedBlock] = {};
    const size_t params = sizeof(P) * static_cast<size_t>(count), states = static_cast<size_t>(count);
    memcpy(param, a.param, params);
    memcpy(grad, a.grad, params);
    memcpy(exp_avg, a.exp_avg, states);
    memcpy(exp_avg_sq, a.exp_avg_sq, states);
    if constexpr (Amsgrad) memcpy(max_exp_avg_sq, a.max_exp_avg_sq, states);
    if constexpr (Store == kStoreCompensated) memcpy(compensation, a.compensation, params);
    if constexpr (Store == kStoreStochastic) memcpy(rounding, h, sizeof(uint16_t) * static_cast<size_t>(count));
    AdamWArrays<P, Int8> copy = a;
    copy.param = param;
    copy.grad = grad;
    copy.compensation = compensation;
    copy.exp_avg = exp_avg;
    copy.exp_avg_sq = exp_avg_sq;
    copy.max_exp_avg_sq = max_exp_avg_sq;
    adamw_block<L, P, Amsgrad, Store>(copy, rounding, dither, c);
    memcpy(a.param, param, params);
    memcpy(a.exp_avg, exp_avg, states);
    memcpy(a.exp_avg_sq, exp_avg_sq, states);
    if constexpr (Amsgrad) memcpy(a.max_exp_avg_sq, max_exp_avg_sq, states);
    if constexpr (Store == kStoreCompensated) memcpy(a.compensation, compensation, params);
}

template <class L, class P, class S, bool Amsgrad, int Store>
void adamw_strip(const AdamWTask& t, int64_t begin, int64_t n, const uint16_t* rounding, const AdamWCoefficients<L>& c) {
    if constexpr (std::is_same<S, Int8>::value) {
        for (int64_t i = 0; i < n; i += kQuantizedBlock) {
            const AdamWArrays<P, S> a(t, begin + i);
            const uint16_t* h = advance<Store == kStoreStochastic>(rounding, i);
            const typename L::U dither = AdamWNoise<L>::dither_at(t.dither, begin + i);
            if (n - i >= kQuantizedBlock) {
                adamw_block<L, P, Amsgrad, Store>(a, h, dither, c);
            } else {
                adamw_last_block<L, P, Amsgrad, Store>(a, n - i, h, dither, c);
            }
        }
    } else {
        const AdamWNoise<L> noise = {rounding, AdamWNoise<L>::dither_at(t.dither, begin)};
        adamw_dense<L, P, S, Amsgrad, Store>(AdamWArrays<P, S>(t, begin), n, noise, c);
    }
}

template <class L, class P, class S, bool Amsgrad, int Store>
void adamw_run(const AdamWTask& t, int64_t begin, int64_t end) {
    const AdamWCoefficients<L> c(t);
    if constexpr (Store == kStoreStochastic) {
        static_assert(kStrip % kQuantizedBlock == 0, "strips are whole blocks");
        Task stream = {};
        stream.round_seed = t.round_seed;
        stream.round_stream = t.round_stream;
        uint32_t words[(kStrip + 8) / 2 + 4 * L::lanes];
        for (int64_t i = begin; i < end; i += kStrip) {
            const int64_t n = end - i < kStrip ? end - i : kStrip;
            adamw_strip<L, P, S, Amsgrad, Store>(t, i, n, rounding_bits<L>(stream, static_cast<uint64_t>(i), n, words), c);
        }
    } else {
        adamw_strip<L, P, S, Amsgrad, Store>(t, begin, end - begin, nullptr, c);
    }
}

template <class L, class P, class S, int Store>
void adamw_amsgrad(const AdamWTask& t, int64_t begin, int64_t end) {
    return t.max_exp_avg_sq != 0 ? adamw_run<L, P, S, true, Store>(t, begin, end) : adamw_run<L, P, S, false, Store>(t, begin, end);
}

template <class L, class P, int Store>
void adamw_state(const AdamWTask& t, int64_t begin, int64_t end) {
    switch (t.state_type) {
        case kStateFloat32: return adamw_amsgrad<L, P, float, Store>(t, begin, end);
        case kStateBFloat16: return adamw_amsgrad<L, P, BFloat16, Store>(t, begin, end);
        default: return adamw_amsgrad<L, P, Int8, Store>(t, begin, end);
    }
}

template <class L>
void adamw_step(const AdamWTask& t, int64_t begin, int64_t end) {
    if (t.param_dtype == kFloat32) return adamw_state<L, float, kStoreNearest>(t, begin, end);
    if (t.param_dtype == kFloat16)
        return t.storing == kStoreCompensated ? adamw_state<L, Float16, kStoreCompensated>(t, begin, end)
                                              : adamw_state<L, Float16, kStoreNearest>(t, begin, end);
    switch (t.storing) {
        case kStoreStochastic: return adamw_state<L, BFloat16, kStoreStochastic>(t, begin, end);
        case kStoreCompensated: return adamw_state<L, BFloat16, kStoreCompensated>(t, begin, end);
        default: return adamw_state<L, BFloat16, kStoreNearest>(t, begin, end);
    }
}

template <class P>
double sum_of_squares_of(const P* g, int64_t n) {
    constexpr int width = kSumWidth;
    double sums[width] = {};
    int64_t i = 0;
    for (; i + width <= n; i += width) {
        double x[width];
        for (int j = 0; j < width; ++j) x[j] = static_cast<double>(widen(g[i + j]));
        for (int j = 0; j < width; ++j) sums[j] += x[j] * x[j];
    }
    for (int j = 0; i + j < n; ++j) {
        const double x = static_cast<double>(widen(g[i + j]));
        sums[j] += x * x;
    }
    for (int half = width / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    return sums[0];
}

inline double sum_of_squares(const AdamWTask& t, int64_t begin, int64_t end) {
    switch (t.param_dtype) {
        case kFloat32: return sum_of_squares_of(reinterpret_cast<const float*>(t.grad) + begin, end - begin);
        case kBFloat16: return sum_of_squares_of(reinterpret_cast<const BFloat16*>(t.grad) + begin, end - begin);
        default: return sum_of_squares_of(reinterpret_cast<const Float16*>(t.grad) + begin, end - begin);
    }
}

}  // namespace SFF_ISA
}  // namespace sff
