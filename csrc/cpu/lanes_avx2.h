// Eight fp32 lanes: AVX2 with FMA and F16C. See core/scalar.h for what each operation means.
#pragma once

#include <immintrin.h>

#include "../core/dtypes.h"

namespace sff {
namespace SFF_ISA {

struct Avx2 {
    static constexpr int lanes = 8;
    static constexpr int blocks = lanes / 2;
    static constexpr int interleave = 6;
    static constexpr int together = 2;
    static constexpr const char* name = "avx2";

    struct F {
        __m256 v;
    };
    struct U {
        __m256i v;
    };
    struct Q {
        __m256i v;
    };

    static SFF_INLINE F f(float x) { return {_mm256_set1_ps(x)}; }
    static SFF_INLINE U u(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
    static SFF_INLINE Q q(uint64_t x) { return {_mm256_set1_epi64x(static_cast<long long>(x))}; }
    // Products m * block for blocks 0, 2, 1, 3: see `unit_draws` for the order.
    static SFF_INLINE Q first_products(uint64_t m) {
        return {_mm256_setr_epi64x(0, static_cast<long long>(2 * m), static_cast<long long>(m), static_cast<long long>(3 * m))};
    }

    static SFF_INLINE F load_table(const float* p) { return {_mm256_loadu_ps(p)}; }
    static SFF_INLINE F load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static SFF_INLINE F load(const BFloat16* p) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
    }
    static SFF_INLINE F load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

    static constexpr int code_bit = 24;
    // One shuffle of bytes that were repeated by the load.
    static SFF_INLINE U load_codes(const uint8_t* p) {
        long long codes;
        memcpy(&codes, p, sizeof codes);
        const __m256i to_top = _mm256_setr_epi32(0x00808080, 0x01808080, 0x02808080, 0x03808080,  //
                                                 0x04808080, 0x05808080, 0x06808080, 0x07808080);
        return {_mm256_shuffle_epi8(_mm256_set1_epi64x(codes), to_top)};
    }
    struct CodeStore {
        SFF_INLINE bool operator()(uint8_t* p, const U (&a)[4]) const {
            const __m256i low = _mm256_packus_epi32(_mm256_srli_epi32(a[0].v, 24), _mm256_srli_epi32(a[1].v, 24));
            const __m256i high = _mm256_packus_epi32(_mm256_srli_epi32(a[2].v, 24), _mm256_srli_epi32(a[3].v, 24));
            const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), codes);
            return _mm256_movemask_epi8(_mm256_cmpeq_epi8(codes, _mm256_setzero_si256())) != 0;
        }
    };
    static SFF_INLINE U kept(U x) {
        asm("" : "+x"(x.v));
        return x;
    }
    static SFF_INLINE F larger_magnitude(F a, F b) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_max_ps(_mm256_andnot_ps(sign, a.v), _mm256_andnot_ps(sign, b.v))};
    }
    static SFF_INLINE uint32_t largest(U a) {
        __m128i x = _mm_max_epu32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
        x = _mm_max_epu32(x, _mm_unpackhi_epi64(x, x));
        return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(x, _mm_shuffle_epi32(x, 1))));
    }

    static SFF_INLINE bool any_nan(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_UNORD_Q)) != 0; }
    template <class T>
    static __attribute__((noinline, cold)) void store_pair_with_nan(T* p, F a, F b) {
        float x[2 * lanes];
        _mm256_storeu_ps(x, a.v);
        _mm256_storeu_ps(x + lanes, b.v);
        for (int i = 0; i < 2 * lanes; ++i) narrow(x[i], p[i]);
    }
    struct NanNote {
        __m256 nans = _mm256_setzero_ps();
        SFF_INLINE void add(F a, F b) { nans = _mm256_or_ps(nans, _mm256_cmp_ps(a.v, b.v, _CMP_UNORD_Q)); }
        SFF_INLINE bool any() const { return _mm256_movemask_ps(nans) != 0; }
    };
    static SFF_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
    static SFF_INLINE void store(Float16* p, F a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    template <class T>
    static SFF_INLINE void store_pair(T* p, F a, F b) {
        if (__builtin_expect(any_nan(a, b), 0)) return store_pair_with_nan(p, a, b);
        store(p, a);
        store(p + lanes, b);
    }
    static SFF_INLINE void store_pair(BFloat16* p, F a, F b);
    static SFF_INLINE U load_halves(const uint16_t* p) {
        return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    // The low halves of both, which must be below 2^16.
    static SFF_INLINE void store_half_pair(void* p, U a, U b) {
        const __m256i ordered = _mm256_permute4x64_epi64(_mm256_packus_epi32(a.v, b.v), 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ordered);
    }
    static SFF_INLINE void store_upper_halves(BFloat16* p, U a, U b) {
        store_half_pair(p, {_mm256_srli_epi32(a.v, 16)}, {_mm256_srli_epi32(b.v, 16)});
    }
    template <class T>
    static __attribute__((noinline, cold)) void store_pair_stochastic_with_nan(T* p, F a, F b, const uint16_t* h) {
        float x[2 * lanes];
        _mm256_storeu_ps(x, a.v);
        _mm256_storeu_ps(x + lanes, b.v);
        for (int i = 0; i < 2 * lanes; ++i) narrow_stochastic(x[i], h[i], p[i]);
    }
    template <class T>
    static SFF_INLINE void store_pair_stochastic(T* p, F a, F b, const uint16_t* h);
    static SFF_INLINE void interpolate(double* p, double shrink, double perturb, F draw) {
        const __m256d a = _mm256_set1_pd(shrink), b = _mm256_set1_pd(perturb);
        const __m256d low =
            _mm256_fmadd_pd(a, _mm256_loadu_pd(p), _mm256_mul_pd(b, _mm256_cvtps_pd(_mm256_castps256_ps128(draw.v))));
        const __m256d high =
            _mm256_fmadd_pd(a, _mm256_loadu_pd(p + 4), _mm256_mul_pd(b, _mm256_cvtps_pd(_mm256_extractf128_ps(draw.v, 1))));
        if (__builtin_expect(_mm256_movemask_pd(_mm256_cmp_pd(low, high, _CMP_UNORD_Q)) != 0, 0)) {
            float x[lanes];
            _mm256_storeu_ps(x, draw.v);
            for (int i = 0; i < lanes; ++i) p[i] = interpolated(p[i], shrink, perturb, x[i]);
            return;
        }
        _mm256_storeu_pd(p, low);
        _mm256_storeu_pd(p + 4, high);
    }
    static SFF_INLINE void prefetch(uintptr_t p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
    static SFF_INLINE void prefetch_to_write(uintptr_t p) {
        asm volatile("prefetchw %0" : : "m"(*reinterpret_cast<const char*>(p)));
    }
    static SFF_INLINE void prefetch_far(uintptr_t p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
};

SFF_INLINE Avx2::F operator+(Avx2::F a, Avx2::F b) { return {_mm256_add_ps(a.v, b.v)}; }
SFF_INLINE Avx2::F operator-(Avx2::F a, Avx2::F b) { return {_mm256_sub_ps(a.v, b.v)}; }
SFF_INLINE Avx2::F operator/(Avx2::F a, Avx2::F b) { return {_mm256_div_ps(a.v, b.v)}; }
SFF_INLINE Avx2::F operator*(Avx2::F a, Avx2::F b) { return {_mm256_mul_ps(a.v, b.v)}; }
SFF_INLINE Avx2::U operator+(Avx2::U a, Avx2::U b) { return {_mm256_add_epi32(a.v, b.v)}; }
SFF_INLINE Avx2::U operator-(Avx2::U a, Avx2::U b) { return {_mm256_sub_epi32(a.v, b.v)}; }
SFF_INLINE Avx2::U operator&(Avx2::U a, Avx2::U b) { return {_mm256_and_si256(a.v, b.v)}; }
SFF_INLINE Avx2::U operator|(Avx2::U a, Avx2::U b) { return {_mm256_or_si256(a.v, b.v)}; }
SFF_INLINE Avx2::U operator^(Avx2::U a, Avx2::U b) { return {_mm256_xor_si256(a.v, b.v)}; }
SFF_INLINE Avx2::F fused(Avx2::F a, Avx2::F b, Avx2::F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
SFF_INLINE Avx2::F square_root(Avx2::F a) { return {_mm256_sqrt_ps(a.v)}; }
SFF_INLINE Avx2::U to_bits(Avx2::F a) { return {_mm256_castps_si256(a.v)}; }
SFF_INLINE Avx2::F from_bits(Avx2::U a) { return {_mm256_castsi256_ps(a.v)}; }
SFF_INLINE Avx2::F signed_to_float(Avx2::U a) { return {_mm256_cvtepi32_ps(a.v)}; }
SFF_INLINE Avx2::U truncated(Avx2::F a) { return {_mm256_cvttps_epi32(a.v)}; }
template <int S>
SFF_INLINE Avx2::U shift_left(Avx2::U a) {
    return {_mm256_slli_epi32(a.v, S)};
}
template <int S>
SFF_INLINE Avx2::U shift_right(Avx2::U a) {
    return {_mm256_srli_epi32(a.v, S)};
}
template <int S>
SFF_INLINE Avx2::U shift_right_signed(Avx2::U a) {
    return {_mm256_srai_epi32(a.v, S)};
}
SFF_INLINE Avx2::F select_by_sign(Avx2::U s, Avx2::F a, Avx2::F b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(s.v))};
}
SFF_INLINE Avx2::F select_less(Avx2::F a, Avx2::F b, Avx2::F x, Avx2::F y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
SFF_INLINE Avx2::U select_bits(Avx2::U mask, Avx2::U a, Avx2::U b) {
    return {_mm256_or_si256(_mm256_and_si256(mask.v, a.v), _mm256_andnot_si256(mask.v, b.v))};
}
SFF_INLINE Avx2::U larger(Avx2::U a, Avx2::U b) { return {_mm256_max_epu32(a.v, b.v)}; }
SFF_INLINE Avx2::F smaller(Avx2::F a, Avx2::F b) { return {_mm256_min_ps(a.v, b.v)}; }
SFF_INLINE Avx2::F larger(Avx2::F a, Avx2::F b) { return {_mm256_max_ps(a.v, b.v)}; }

SFF_INLINE Avx2::Q operator+(Avx2::Q a, Avx2::Q b) { return {_mm256_add_epi64(a.v, b.v)}; }
SFF_INLINE Avx2::Q multiply_low_halves(Avx2::Q a, Avx2::Q b) { return {_mm256_mul_epu32(a.v, b.v)}; }
SFF_INLINE Avx2::Q high_half(Avx2::Q a) { return {_mm256_srli_epi64(a.v, 32)}; }
SFF_INLINE Avx2::Q high_half_shuffled(Avx2::Q a) { return {_mm256_shuffle_epi32(a.v, 0xF5)}; }
SFF_INLINE Avx2::Q to_high_half(Avx2::Q a) { return {_mm256_slli_epi64(a.v, 32)}; }
SFF_INLINE Avx2::Q exclusive_or(Avx2::Q a, Avx2::Q b) { return {_mm256_xor_si256(a.v, b.v)}; }
SFF_INLINE Avx2::Q exclusive_or(Avx2::Q a, Avx2::Q b, Avx2::Q c) { return exclusive_or(exclusive_or(a, b), c); }
SFF_INLINE Avx2::Q join_low_halves(Avx2::Q a, Avx2::Q b) { return {_mm256_blend_epi32(a.v, _mm256_slli_epi64(b.v, 32), 0xAA)}; }
SFF_INLINE Avx2::Q join_high_halves(Avx2::Q a, Avx2::Q b) { return {_mm256_blend_epi32(_mm256_srli_epi64(a.v, 32), b.v, 0xAA)}; }
SFF_INLINE Avx2::U both_halves(Avx2::Q a) { return {a.v}; }
SFF_INLINE void interleave_pairs(Avx2::Q a, Avx2::Q b, Avx2::U& low, Avx2::U& high) {
    const __m256 x = _mm256_castsi256_ps(a.v), y = _mm256_castsi256_ps(b.v);
    low = {_mm256_castps_si256(_mm256_shuffle_ps(x, y, _MM_SHUFFLE(0, 1, 0, 1)))};
    high = {_mm256_castps_si256(_mm256_shuffle_ps(x, y, _MM_SHUFFLE(2, 3, 2, 3)))};
}
SFF_INLINE void interleave_floats(Avx2::F a, Avx2::F b, Avx2::F& low, Avx2::F& high) {
    low = {_mm256_unpacklo_ps(a.v, b.v)};
    high = {_mm256_unpackhi_ps(a.v, b.v)};
}
SFF_INLINE void store_words(uint32_t* p, Avx2::U a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }

template <class T>
SFF_INLINE void Avx2::store_pair_stochastic(T* p, F a, F b, const uint16_t* h) {
    if (__builtin_expect(any_nan(a, b), 0)) return store_pair_stochastic_with_nan(p, a, b, h);
    store_half_pair(p, stochastic<Avx2>(a, load_halves(h), T{}), stochastic<Avx2>(b, load_halves(h + lanes), T{}));
}
SFF_INLINE void Avx2::store_pair(BFloat16* p, F a, F b) {
    if (__builtin_expect(any_nan(a, b), 0)) return store_pair_with_nan(p, a, b);
    store_half_pair(p, nearest<Avx2>(a, BFloat16{}), nearest<Avx2>(b, BFloat16{}));
}

}  // namespace SFF_ISA
}  // namespace sff
