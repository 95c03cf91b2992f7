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
        if constexpr (Store == kStoreCompensated) L::store_pair(compensation, first - L::load(p), second - L::load(p + L::lanes));
    }
}

template <class L, class S>
SFF_INLINE void store_second_moments(S* p, typename L::F first, typename L::F second, typename L::U dither) {
    if constexpr (std::is_same<S, BFloat16>::value) {
        L::store_upper_halves(p, dithered_bfloat16<L>(first, dither), dithered_bfloat16<L>(second, AdamWNoise<L>::next(dither)));
    } else {
        L::store_pair(p, first, second);
    }
}

template <class L, class T>
SFF_INLINE void prefetch_ahead(const T* p) {
    for (int line = 0; line < static_cast<int>(sizeof(T)) * 2 * L::lanes; line += 64)
        L::prefetch(reinterpret_cast<uintptr_t>(p) + kPrefetchBytes + static_cast<uintptr_t>(line));
}

template <class L, class T>
SFF_INLINE void prefetch_ahead_to_write(T* p) {
    for (int line = 0; line < static_cast<int>(sizeof(T)) * 2 * L::lanes; line += 64)
        L::prefetch_to_write(reinterpret_cast<uintptr_t>(p) + kPrefetchBytes + static_cast<uintptr_t>(line));
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

// Codes and scales: few bytes a block, so that less far ahead than parameters is the same time.
constexpr int kPrefetchCodes = 512, kPrefetchScales = 256;
template <class L>
SFF_INLINE void prefetch_states(const Int8* codes) {
    L::prefetch(reinterpret_cast<uintptr_t>(codes) + kPrefetchCodes);
}
template <class L>
SFF_INLINE void prefetch_states(const float* scales) {
    L::prefetch(reinterpret_cast<uintptr_t>(scales) + kPrefetchScales);
}

constexpr uint32_t kInfinity = 0x7f800000u;  // as bits

// One kind of moments of a block that was stepped and waits to be encoded.
template <class L, bool Signed>
struct Moments {
    alignas(64) float values[kQuantizedBlock];
    float scale = 0.0f;  // where it is not positive nothing waits
    typename L::U dither;
    Int8* codes;

    // largest: the maximum of the magnitudes' bits.
    SFF_INLINE void close(uint32_t largest, typename L::U first_dither, float* block, Int8* to) {
        *block = scale = block_scale(from_bits(largest), largest < kInfinity);
        dither = first_dither;
        codes = to;
        if (!(scale > 0.0f)) memset(to, 0, kQuantizedBlock);
    }
    // The same maximum, read again.
    __attribute__((noinline, cold)) uint32_t largest_again() const {
        uint32_t bits = 0;
        for (const float x : values) bits = larger_bits(to_bits(x) & 0x7fffffffu, bits);
        return bits;
    }

private:
    static uint32_t larger_bits(uint32_t a, uint32_t b) { return a > b ? a : b; }
};

// What all encoders keep in registers.
template <class L>
struct EncoderConstants {
    const typename L::CodeStore store = {};
    const typename L::U dither_step = L::kept(L::u(static_cast<uint32_t>(L::lanes) * kDitherStep));
};

// Encodes a block's moments, four vectors at a time.
template <class L, bool Signed>
class Encoder {
public:
    SFF_INLINE Encoder(const Moments<L, Signed>& moments, const EncoderConstants<L>& constants)
        : moments_(moments),
          constants_(constants),
          waits_(moments.scale > 0.0f),
          factor_(L::f(encoding_factor(moments.scale, Signed ? kSignedTop : kUnsignedTop))),
          dither_(moments.dither),
          codes_(moments.codes) {}

    SFF_INLINE void encode(int k) {
        if (waits_) zero_ = encode_four<false>(k) || zero_;
    }
    // A second moment's code 0 may be one that the fast formula could not tell.
    SFF_INLINE void finish() const {
        if (!Signed && zero_) encode_bounded(moments_);
    }

private:
    template <bool Bounded>
    SFF_INLINE bool encode_four(int k) {
        typename L::U code[4];
        SFF_UNROLL
        for (int j = 0; j < 4; ++j) {
            const typename L::F x = L::load(moments_.values + k + j * L::lanes);
            if constexpr (Signed) {
                code[j] = encode_signed<L>(x, factor_);
            } else {
                code[j] = encode_unsigned<L, Bounded>(x, factor_, dither_);
                dither_ = dither_ + constants_.dither_step;
            }
        }
        return constants_.store(&codes_[k].code, code);
    }
    static __attribute__((noinline)) void encode_bounded(const Moments<L, Signed>& moments) {
        const EncoderConstants<L> constants;
        Encoder again(moments, constants);
        for (int k = 0; k < kQuantizedBlock; k += 4 * L::lanes) again.template encode_four<true>(k);
    }

    const Moments<L, Signed>& moments_;
    const EncoderConstants<L>& constants_;
    const bool waits_;
    bool zero_ = false;
    const typename L::F factor_;
    typename L::U dither_;
    Int8* const codes_;
};

template <class L>
struct BlockMoments {
    Moments<L, true> exp_avg;
    Moments<L, false> exp_avg_sq, max_exp_avg_sq;
};

template <class L, bool Amsgrad>
class BlockEncoder {
public:
    SFF_INLINE BlockEncoder(const BlockMoments<L>& m, const EncoderConstants<L>& c)
        : exp_avg_(m.exp_avg, c), exp_avg_sq_(m.exp_avg_sq, c), max_exp_avg_sq_(m.max_exp_avg_sq, c) {}
    SFF_INLINE void encode_signed_four(int k) { exp_avg_.encode(k); }
    SFF_INLINE void encode_unsigned_four(int k) {
        exp_avg_sq_.encode(k);
        if constexpr (Amsgrad) max_exp_avg_sq_.encode(k);
    }
    SFF_INLINE void finish() const {
        exp_avg_sq_.finish();
        if constexpr (Amsgrad) max_exp_avg_sq_.finish();
    }

private:
    Encoder<L, true> exp_avg_;
    Encoder<L, false> exp_avg_sq_, max_exp_avg_sq_;
};

// The step of one whole block with int8 states, four vectors at a time. It leaves its new moments in `now`, while those of the
// block before, `waiting`, are encoded: divisions and square roots keep one unit busy, and what encoding takes runs while they
// are waited for.
template <class L, class P, bool Amsgrad, int Store>
class BlockStep {
public:
    SFF_INLINE BlockStep(const AdamWArrays<P, Int8>& a, const uint16_t* h, typename L::U dither, const AdamWCoefficients<L>& c,
                         const EncoderConstants<L>& constants, const BlockMoments<L>& waiting, BlockMoments<L>& now)
        : a_(a),
          h_(h),
          dither_(dither),
          c_(c),
          now_(now),
          encoder_(waiting, constants),
          m_scale_(L::f(*a.exp_avg_scale)),
          v_scale_(L::f(*a.exp_avg_sq_scale)),
          x_scale_(L::f(Amsgrad ? *a.max_exp_avg_sq_scale : 0.0f)) {
        prefetch_states<L>(a.exp_avg_scale);
        prefetch_states<L>(a.exp_avg_sq_scale);
    }

    // Elements from i on; every multiple of their number once.
    SFF_INLINE void four(int i) {
        prefetch_states<L>(a_.exp_avg + i);
        prefetch_states<L>(a_.exp_avg_sq + i);
        F p[4], m[4], root[4];
        SFF_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int k = i + j * L::lanes;
            p[j] = load_param<L, P, Store>(a_.param + k, a_.compensation + k);
            m[j] = decode_signed<L>(L::load_codes(&a_.exp_avg[k].code), m_scale_);
            F v = decode_unsigned<L>(L::load_codes(&a_.exp_avg_sq[k].code), v_scale_);
            F x = L::f(0.0f);
            if constexpr (Amsgrad) x = decode_unsigned<L>(L::load_codes(&a_.max_exp_avg_sq[k].code), x_scale_);
            root[j] = adamw_moments<L, Amsgrad>(p[j], L::load(a_.grad + k), m[j], v, x, c_);
            m_largest_ = L::larger_magnitude(m[j], m_largest_);
            v_largest_ = larger(to_bits(v), v_largest_);  // none is negative
            memcpy(now_.exp_avg.values + k, &m[j], sizeof m[j]);
            memcpy(now_.exp_avg_sq.values + k, &v, sizeof v);
            if constexpr (Amsgrad) {
                x_largest_ = larger(to_bits(x), x_largest_);
                memcpy(now_.max_exp_avg_sq.values + k, &x, sizeof x);
            }
        }
        encoder_.encode_signed_four(i);
        SFF_UNROLL
        for (int j = 0; j < 4; j += 2) {
            const int k = i + j * L::lanes;
            p[j] = adamw_param<L>(p[j], m[j], root[j], c_);
            p[j + 1] = adamw_param<L>(p[j + 1], m[j + 1], root[j + 1], c_);
            prefetch_ahead_to_write<L>(a_.param + k);
            prefetch_ahead<L>(a_.grad + k);
            if constexpr (std::is_same<P, float>::value) {  // NaNs are made canonical in `finish`, for the block as a whole
                nans_.add(p[j], p[j + 1]);
                L::store(a_.param + k, p[j]);
                L::store(a_.param + k + L::lanes, p[j + 1]);
            } else {
                store_params<L, P, Store>(a_.param + k, a_.compensation + k, p[j], p[j + 1],
                                          advance<Store == kStoreStochastic>(h_, k));
            }
        }
        encoder_.encode_unsigned_four(i);
    }

    SFF_INLINE void finish() {
        encoder_.finish();
        if constexpr (std::is_same<P, float>::value) {
            if (__builtin_expect(nans_.any(), 0))
                for (int k = 0; k < kQuantizedBlock; ++k) a_.param[k] = canonical(a_.param[k]);
        }
        // The first moments' maximum may have missed a NaN. It is there only with one in their scale, or with one in a gradient
        // and so in a second moment too.
        const uint32_t v_bits = L::largest(v_largest_);
        const float old_scale = *a_.exp_avg_scale;
        const bool exact = v_bits < kInfinity && old_scale == old_scale;
        const uint32_t m_bits = exact ? L::largest(to_bits(m_largest_)) : now_.exp_avg.largest_again();
        now_.exp_avg.close(m_bits, dither_, a_.exp_avg_scale, a_.exp_avg);
        now_.exp_avg_sq.close(v_bits, dither_, a_.exp_avg_sq_scale, a_.exp_avg_sq);
        if constexpr (Amsgrad)
            now_.max_exp_avg_sq.close(L::largest(x_largest_), dither_, a_.max_exp_avg_sq_scale, a_.max_exp_avg_sq);
    }

private:
    using F = typename L::F;
    using U = typename L::U;

    const AdamWArrays<P, Int8> a_;
    const uint16_t* const h_;
    const U dither_;
    const AdamWCoefficients<L>& c_;
    BlockMoments<L>& now_;
    BlockEncoder<L, Amsgrad> encoder_;
    const F m_scale_, v_scale_, x_scale_;
    F m_largest_ = L::f(0.0f);
    U v_largest_ = L::u(0), x_largest_ = L::u(0);
    typename L::NanNote nans_;
};

// Steps side by side: memory gives more to several streams, and one's divisions leave room for the other's loads.
template <class L, class... Steps>
SFF_INLINE void run_together(Steps&&... steps) {
    for (int i = 0; i < kQuantizedBlock; i += 4 * L::lanes) (steps.four(i), ...);
    (steps.finish(), ...);
}

template <class L, bool Amsgrad>
__attribute__((noinline)) void encode_waiting(const BlockMoments<L>& waiting) {
    const EncoderConstants<L> constants;
    BlockEncoder<L, Amsgrad> encoder(waiting, constants);
    for (int k = 0; k < kQuantizedBlock; k += 4 * L::lanes) {
        encoder.encode_signed_four(k);
        encoder.encode_unsigned_four(k);
    }
    encoder.finish();
}

// A parameter's last block, shorter than the others: a whole one on copies; the zeros behind it change no scale.
template <class L, class P, bool Amsgrad, int Store>
__attribute__((noinline)) void adamw_last_block(const AdamWArrays<P, Int8>& a, int64_t count, const uint16_t* h,
                                                typename L::U dither, const AdamWCoefficients<L>& c) {
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
    BlockMoments<L> nothing, now;
    const EncoderConstants<L> constants;
    run_together<L>(BlockStep<L, P, Amsgrad, Store>(copy, rounding, dither, c, constants, nothing, now));
    encode_waiting<L, Amsgrad>(now);
    memcpy(a.param, param, params);
    memcpy(a.exp_avg, exp_avg, states);
    memcpy(a.exp_avg_sq, exp_avg_sq, states);
    if constexpr (Amsgrad) memcpy(a.max_exp_avg_sq, max_exp_avg_sq, states);
    if constexpr (Store == kStoreCompensated) memcpy(a.compensation, compensation, params);
}

// The steps of neighbouring strips with int8 states. Moments wait from one block to the next of a stream, and at the end for
// `finish`.
template <class L, class P, bool Amsgrad, int Store>
class QuantizedSteps {
public:
    explicit QuantizedSteps(const AdamWTask& t) : t_(t), c_(t) {}

    void strip(int64_t begin, int64_t n, const uint16_t* rounding) {
        const EncoderConstants<L> constants;
        const int64_t apart = blocks_apart(n / (2 * kQuantizedBlock)) * kQuantizedBlock;
        for (int64_t i = 0; i < apart; i += kQuantizedBlock)
            run_together<L>(step(begin, i, rounding, constants, streams_[0]),
                            step(begin, i + apart, rounding, constants, streams_[1]));
        int64_t i = 2 * apart;
        for (; n - i >= kQuantizedBlock; i += kQuantizedBlock) run_together<L>(step(begin, i, rounding, constants, streams_[0]));
        if (i < n)
            adamw_last_block<L, P, Amsgrad, Store>(AdamWArrays<P, Int8>(t_, begin + i), n - i,
                                                   advance<Store == kStoreStochastic>(rounding, i), dither_at(begin + i), c_);
    }
    void finish() {
        for (const Stream& stream : streams_) encode_waiting<L, Amsgrad>(stream.moments[stream.turn]);
    }

private:
    struct Stream {
        BlockMoments<L> moments[2];  // that wait, and that are made
        int turn = 0;
    };

    // How far apart two streams are that share `pairs` pairs of blocks: nearly the first and the second half, but 2 modulo 4
    // blocks. A load waits for a store before it whose address ends in the same 12 bits; at whole pages apart, each stream's
    // loads would wait for the other's parameters.
    static constexpr int64_t blocks_apart(int64_t pairs) { return pairs < 8 ? pairs : pairs - (pairs + 2) % 4; }
    SFF_INLINE typename L::U dither_at(int64_t element) const { return AdamWNoise<L>::dither_at(t_.dither, element); }
    SFF_INLINE BlockStep<L, P, Amsgrad, Store> step(int64_t begin, int64_t i, const uint16_t* rounding,
                                                    const EncoderConstants<L>& constants, Stream& stream) {
        const BlockMoments<L>& waiting = stream.moments[stream.turn];
        stream.turn = 1 - stream.turn;
        return {AdamWArrays<P, Int8>(t_, begin + i),
                advance<Store == kStoreStochastic>(rounding, i),
                dither_at(begin + i),
                c_,
                constants,
                waiting,
                stream.moments[stream.turn]};
    }

    const AdamWTask& t_;
    const AdamWCoefficients<L> c_;
    Stream streams_[2];
};

template <class L, class P, class S, bool Amsgrad, int Store>
class DenseSteps {
public:
    explicit DenseSteps(const AdamWTask& t) : t_(t), c_(t) {}

    void strip(int64_t begin, int64_t n, const uint16_t* rounding) {
        const AdamWNoise<L> noise = {rounding, AdamWNoise<L>::dither_at(t_.dither, begin)};
        adamw_dense<L, P, S, Amsgrad, Store>(AdamWArrays<P, S>(t_, begin), n, noise, c_);
    }
    void finish() {}

private:
    const AdamWTask& t_;
    const AdamWCoefficients<L> c_;
};

template <class L, class P, class S, bool Amsgrad, int Store>
void adamw_run(const AdamWTask& t, int64_t begin, int64_t end) {
    using Quantized = QuantizedSteps<L, P, Amsgrad, Store>;
    std::conditional_t<std::is_same<S, Int8>::value, Quantized, DenseSteps<L, P, S, Amsgrad, Store>> steps(t);
    if constexpr (Store == kStoreStochastic) {
        static_assert(kStrip % kQuantizedBlock == 0, "strips are whole blocks");
        Task stream = {};
        stream.round_seed = t.round_seed;
        stream.round_stream = t.round_stream;
        uint32_t words[(kStrip + 8) / 2 + 4 * L::lanes];
        for (int64_t i = begin; i < end; i += kStrip) {
            const int64_t n = end - i < kStrip ? end - i : kStrip;
            steps.strip(i, n, rounding_bits<L>(stream, static_cast<uint64_t>(i), n, words));
        }
    } else {
        steps.strip(begin, end - begin, nullptr);
    }
    steps.finish();
}

template <class L, class P, class S, int Store>
void adamw_amsgrad(const AdamWTask& t, int64_t begin, int64_t end) {
    return t.max_exp_avg_sq != 0 ? adamw_run<L, P, S, true, Store>(t, begin, end)
                                 : adamw_run<L, P, S, false, Store>(t, begin, end);
}

template <class L, class P, int Store>
void adamw_state(const AdamWTask& t, int64_t begin, int64_t end) {
    switch (t.state_type) {
        case kStateFloat32:
            return adamw_amsgrad<L, P, float, Store>(t, begin, end);
        case kStateBFloat16:
            return adamw_amsgrad<L, P, BFloat16, Store>(t, begin, end);
        default:
            return adamw_amsgrad<L, P, Int8, Store>(t, begin, end);
    }
}

template <class L>
void adamw_step(const AdamWTask& t, int64_t begin, int64_t end) {
    if (t.param_dtype == kFloat32) return adamw_state<L, float, kStoreNearest>(t, begin, end);
    if (t.param_dtype == kFloat16)
        return t.storing == kStoreCompensated ? adamw_state<L, Float16, kStoreCompensated>(t, begin, end)
                                              : adamw_state<L, Float16, kStoreNearest>(t, begin, end);
    switch (t.storing) {
        case kStoreStochastic:
            return adamw_state<L, BFloat16, kStoreStochastic>(t, begin, end);
        case kStoreCompensated:
            return adamw_state<L, BFloat16, kStoreCompensated>(t, begin, end);
        default:
            return adamw_state<L, BFloat16, kStoreNearest>(t, begin, end);
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
        case kFloat32:
            return sum_of_squares_of(reinterpret_cast<const float*>(t.grad) + begin, end - begin);
        case kBFloat16:
            return sum_of_squares_of(reinterpret_cast<const BFloat16*>(t.grad) + begin, end - begin);
        default:
            return sum_of_squares_of(reinterpret_cast<const Float16*>(t.grad) + begin, end - begin);
    }
}

}  // namespace SFF_ISA
}  // namespace sff
