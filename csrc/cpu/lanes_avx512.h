// Sixteen fp32 lanes: AVX-512 F, BW, DQ, VL, with the bfloat16 conversion where SFF_NATIVE_BF16 is set.
// See core/scalar.h for what each operation means.
#pragma once

#include <immintrin.h>

#include "../core/dtypes.h"

namespace sff {
namespace SFF_ISA {

struct Avx512 {
    static constexpr int lanes = 16;
    static constexpr int blocks = lanes / 2;
    static constexpr int interleave = 6;
    static constexpr int together = 6;
#ifdef SFF_NATIVE_BF16
    static constexpr const char* name = "avx512+bf16";
#else
    static constexpr const char* name = "avx512";
#endif

    struct F {
        __m512 v;
    };
    struct U {
        __m512i v;
    };
    struct Q {
        __m512i v;
    };

    static SFF_INLINE F f(float x) { return {_mm512_set1_ps(x)}; }
    static SFF_INLINE U u(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
    static SFF_INLINE Q q(uint64_t x) { return {_mm512_set1_epi64(static_cast<long long>(x))}; }
    // Products m * block for blocks 0, 4, 1, 5, 2, 6, 3, 7: see `unit_draws` for the order.
    static SFF_INLINE Q first_products(uint64_t m) {
        const auto p = [m](int block) { return static_cast<long long>(m * static_cast<uint64_t>(block)); };
        return {_mm512_setr_epi64(p(0), p(4), p(1), p(5), p(2), p(6), p(3), p(7))};
    }

    static SFF_INLINE F load_table(const float* p) { return {_mm512_loadu_ps(p)}; }
    static SFF_INLINE F load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static SFF_INLINE F load(const BFloat16* p) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
    }
    static SFF_INLINE F load(const Float16* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }

    static constexpr int code_bit = 24;
    // One shuffle of bytes that were repeated by the load.
    static SFF_INLINE U load_codes(const uint8_t* p) {
        const __m512i codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        const __m512i to_top = _mm512_setr_epi32(0x00808080, 0x01808080, 0x02808080, 0x03808080,  //
                                                 0x04808080, 0x05808080, 0x06808080, 0x07808080,  //
                                                 0x08808080, 0x09808080, 0x0a808080, 0x0b808080,  //
                                                 0x0c808080, 0x0d808080, 0x0e808080, 0x0f808080);
        return {_mm512_shuffle_epi8(codes, to_top)};
    }
    // Within 128 bits the four top bytes of vector j become 32-bit lane j; then the lanes of a vector come together.
    class CodeStore {
    public:
        SFF_INLINE CodeStore() { asm("" : "+Yk"(second_), "+Yk"(third_), "+Yk"(fourth_)); }  // kept, as below
        SFF_INLINE bool operator()(uint8_t* p, const U (&a)[4]) const {
            const __m512i tops = _mm512_set1_epi32(0x0f0b0703);
            const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            __m512i codes = _mm512_shuffle_epi8(a[0].v, tops);
            codes = _mm512_mask_shuffle_epi8(codes, second_, a[1].v, tops);
            codes = _mm512_mask_shuffle_epi8(codes, third_, a[2].v, tops);
            codes = _mm512_mask_shuffle_epi8(codes, fourth_, a[3].v, tops);
            _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, codes));
            return _mm512_testn_epi8_mask(codes, codes) != 0;
        }

    private:
        __mmask64 second_ = 0x00f000f000f000f0, third_ = 0x0f000f000f000f00, fourth_ = 0xf000f000f000f000;
    };
    // The compiler knows too many constants for 32 registers and makes them where they are used, on a port that shuffles need.
    static SFF_INLINE U kept(U x) {
        asm("" : "+v"(x.v));
        return x;
    }
    static SFF_INLINE F larger_magnitude(F a, F b) { return {_mm512_range_ps(a.v, b.v, 0b1011)}; }
    static SFF_INLINE uint32_t largest(U a) { return _mm512_reduce_max_epu32(a.v); }

    static SFF_INLINE bool any_nan(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }
    template <class T>
    static __attribute__((noinline, cold)) void store_pair_with_nan(T* p, F a, F b) {
        float x[2 * lanes];
        _mm512_storeu_ps(x, a.v);
        _mm512_storeu_ps(x + lanes, b.v);
        for (int i = 0; i < 2 * lanes; ++i) narrow(x[i], p[i]);
    }
    struct NanNote {
        __mmask16 numbers = 0xffff;
        SFF_INLINE void add(F a, F b) { numbers = _mm512_mask_cmp_ps_mask(numbers, a.v, b.v, _CMP_ORD_Q); }
        SFF_INLINE bool any() const { return numbers != 0xffff; }
    };
    static SFF_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
    static SFF_INLINE void store(Float16* p, F a) {
        const __m256i x = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
    }
    template <class T>
    static SFF_INLINE void store_pair(T* p, F a, F b) {
        if (__builtin_expect(any_nan(a, b), 0)) return store_pair_with_nan(p, a, b);
        store(p, a);
        store(p + lanes, b);
    }
#ifdef SFF_NATIVE_BF16
    // The conversion instruction flushes denormals, and stores NaN otherwise than the stream wants: such vectors are
    // rounded lane by lane (VFPCLASS: 0x01 quiet NaN, 0x20 denormal, 0x80 signalling NaN).
    static SFF_INLINE void store_pair(BFloat16* p, F a, F b) {
        const bool plain = _kortestz_mask16_u8(_mm512_fpclass_ps_mask(a.v, 0xA1), _mm512_fpclass_ps_mask(b.v, 0xA1)) != 0;
        if (__builtin_expect(!plain, 0)) return store_pair_with_nan(p, a, b);
        _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
    }
#else
    static SFF_INLINE void store_pair(BFloat16* p, F a, F b);
#endif
    static SFF_INLINE U load_halves(const uint16_t* p) {
        return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    // The low halves of both, which must be below 2^16.
    static SFF_INLINE void store_half_pair(void* p, U a, U b) {
        const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, _mm512_packus_epi32(a.v, b.v)));
    }
    static SFF_INLINE void store_upper_halves(BFloat16* p, U a, U b) {
        store_half_pair(p, {_mm512_srli_epi32(a.v, 16)}, {_mm512_srli_epi32(b.v, 16)});
    }
    template <class T>
    static __attribute__((noinline, cold)) void store_pair_stochastic_with_nan(T* p, F a, F b, const uint16_t* h) {
        float x[2 * lanes];
        _mm512_storeu_ps(x, a.v);
        _mm512_storeu_ps(x + lanes, b.v);
        for (int i = 0; i < 2 * lanes; ++i) narrow_stochastic(x[i], h[i], p[i]);
    }
    template <class T>
    static SFF_INLINE void store_pair_stochastic(T* p, F a, F b, const uint16_t* h);
    static SFF_INLINE void interpolate(double* p, double shrink, double perturb, F draw) {
        const __m512d a = _mm512_set1_pd(shrink), b = _mm512_set1_pd(perturb);
        const __m512d low =
            _mm512_fmadd_pd(a, _mm512_loadu_pd(p), _mm512_mul_pd(b, _mm512_cvtps_pd(_mm512_castps512_ps256(draw.v))));
        const __m512d high =
            _mm512_fmadd_pd(a, _mm512_loadu_pd(p + 8), _mm512_mul_pd(b, _mm512_cvtps_pd(_mm512_extractf32x8_ps(draw.v, 1))));
        if (__builtin_expect(_mm512_cmp_pd_mask(low, high, _CMP_UNORD_Q) != 0, 0)) {
            float x[lanes];
            _mm512_storeu_ps(x, draw.v);
            for (int i = 0; i < lanes; ++i) p[i] = interpolated(p[i], shrink, perturb, x[i]);
            return;
        }
        _mm512_storeu_pd(p, low);
        _mm512_storeu_pd(p + 8, high);
    }
    static SFF_INLINE void prefetch(uintptr_t p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
    static SFF_INLINE void prefetch_to_write(uintptr_t p) {
        asm volatile("prefetchw %0" : : "m"(*reinterpret_cast<const char*>(p)));
    }
    static SFF_INLINE void prefetch_far(uintptr_t p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
};

SFF_INLINE Avx512::F operator+(Avx512::F a, Avx512::F b) { return {_mm512_add_ps(a.v, b.v)}; }
SFF_INLINE Avx512::F operator-(Avx512::F a, Avx512::F b) { return {_mm512_sub_ps(a.v, b.v)}; }
SFF_INLINE Avx512::F operator/(Avx512::F a, Avx512::F b) { return {_mm512_div_ps(a.v, b.v)}; }
SFF_INLINE Avx512::F operator*(Avx512::F a, Avx512::F b) { return {_mm512_mul_ps(a.v, b.v)}; }
SFF_INLINE Avx512::U operator+(Avx512::U a, Avx512::U b) { return {_mm512_add_epi32(a.v, b.v)}; }
SFF_INLINE Avx512::U operator-(Avx512::U a, Avx512::U b) { return {_mm512_sub_epi32(a.v, b.v)}; }
SFF_INLINE Avx512::U operator&(Avx512::U a, Avx512::U b) { return {_mm512_and_si512(a.v, b.v)}; }
SFF_INLINE Avx512::U operator|(Avx512::U a, Avx512::U b) { return {_mm512_or_si512(a.v, b.v)}; }
SFF_INLINE Avx512::U operator^(Avx512::U a, Avx512::U b) { return {_mm512_xor_si512(a.v, b.v)}; }
SFF_INLINE Avx512::F fused(Avx512::F a, Avx512::F b, Avx512::F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SFF_INLINE Avx512::F square_root(Avx512::F a) { return {_mm512_sqrt_ps(a.v)}; }
SFF_INLINE Avx512::U to_bits(Avx512::F a) { return {_mm512_castps_si512(a.v)}; }
SFF_INLINE Avx512::F from_bits(Avx512::U a) { return {_mm512_castsi512_ps(a.v)}; }
SFF_INLINE Avx512::F signed_to_float(Avx512::U a) { return {_mm512_cvtepi32_ps(a.v)}; }
SFF_INLINE Avx512::U truncated(Avx512::F a) { return {_mm512_cvttps_epi32(a.v)}; }
template <int S>
SFF_INLINE Avx512::U shift_left(Avx512::U a) {
    return {_mm512_slli_epi32(a.v, S)};
}
template <int S>
SFF_INLINE Avx512::U shift_right(Avx512::U a) {
    return {_mm512_srli_epi32(a.v, S)};
}
template <int S>
SFF_INLINE Avx512::U shift_right_signed(Avx512::U a) {
    return {_mm512_srai_epi32(a.v, S)};
}
SFF_INLINE Avx512::F select_by_sign(Avx512::U s, Avx512::F a, Avx512::F b) {
    return {_mm512_mask_blend_ps(_mm512_movepi32_mask(s.v), b.v, a.v)};
}
SFF_INLINE Avx512::F select_less(Avx512::F a, Avx512::F b, Avx512::F x, Avx512::F y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
SFF_INLINE Avx512::U select_bits(Avx512::U mask, Avx512::U a, Avx512::U b) {
    return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xCA)};
}
SFF_INLINE Avx512::U larger(Avx512::U a, Avx512::U b) { return {_mm512_max_epu32(a.v, b.v)}; }
SFF_INLINE Avx512::F smaller(Avx512::F a, Avx512::F b) { return {_mm512_min_ps(a.v, b.v)}; }
SFF_INLINE Avx512::F larger(Avx512::F a, Avx512::F b) { return {_mm512_max_ps(a.v, b.v)}; }

SFF_INLINE Avx512::Q operator+(Avx512::Q a, Avx512::Q b) { return {_mm512_add_epi64(a.v, b.v)}; }
SFF_INLINE Avx512::Q multiply_low_halves(Avx512::Q a, Avx512::Q b) { return {_mm512_mul_epu32(a.v, b.v)}; }
SFF_INLINE Avx512::Q high_half(Avx512::Q a) { return {_mm512_srli_epi64(a.v, 32)}; }
SFF_INLINE Avx512::Q high_half_shuffled(Avx512::Q a) { return {_mm512_shuffle_epi32(a.v, _MM_PERM_DDBB)}; }
SFF_INLINE Avx512::Q to_high_half(Avx512::Q a) { return {_mm512_slli_epi64(a.v, 32)}; }
SFF_INLINE Avx512::Q exclusive_or(Avx512::Q a, Avx512::Q b) { return {_mm512_xor_si512(a.v, b.v)}; }
SFF_INLINE Avx512::Q exclusive_or(Avx512::Q a, Avx512::Q b, Avx512::Q c) {
    return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)};
}
SFF_INLINE Avx512::Q join_low_halves(Avx512::Q a, Avx512::Q b) {
    return {_mm512_mask_shuffle_epi32(a.v, 0xAAAA, b.v, _MM_PERM_CCAA)};
}
SFF_INLINE Avx512::Q join_high_halves(Avx512::Q a, Avx512::Q b) {
    return {_mm512_mask_shuffle_epi32(b.v, 0x5555, a.v, _MM_PERM_DDBB)};
}
SFF_INLINE Avx512::U both_halves(Avx512::Q a) { return {a.v}; }
SFF_INLINE void interleave_pairs(Avx512::Q a, Avx512::Q b, Avx512::U& low, Avx512::U& high) {
    const __m512 x = _mm512_castsi512_ps(a.v), y = _mm512_castsi512_ps(b.v);
    low = {_mm512_castps_si512(_mm512_shuffle_ps(x, y, _MM_SHUFFLE(0, 1, 0, 1)))};
    high = {_mm512_castps_si512(_mm512_shuffle_ps(x, y, _MM_SHUFFLE(2, 3, 2, 3)))};
}
SFF_INLINE void interleave_floats(Avx512::F a, Avx512::F b, Avx512::F& low, Avx512::F& high) {
    low = {_mm512_unpacklo_ps(a.v, b.v)};
    high = {_mm512_unpackhi_ps(a.v, b.v)};
}
SFF_INLINE void store_words(uint32_t* p, Avx512::U a) { _mm512_storeu_si512(p, a.v); }

template <class T>
SFF_INLINE void Avx512::store_pair_stochastic(T* p, F a, F b, const uint16_t* h) {
    if (__builtin_expect(any_nan(a, b), 0)) return store_pair_stochastic_with_nan(p, a, b, h);
    store_half_pair(p, stochastic<Avx512>(a, load_halves(h), T{}), stochastic<Avx512>(b, load_halves(h + lanes), T{}));
}
#ifndef SFF_NATIVE_BF16
SFF_INLINE void Avx512::store_pair(BFloat16* p, F a, F b) {
    if (__builtin_expect(any_nan(a, b), 0)) return store_pair_with_nan(p, a, b);
    store_half_pair(p, nearest<Avx512>(a, BFloat16{}), nearest<Avx512>(b, BFloat16{}));
}
#endif

}  // namespace SFF_ISA
}  // namespace sff
