// What a thread of the optimizer holds at a time: packed words of a few elements of every array, as vector accesses move them.
#pragma once

#include <type_traits>

#include "../core/adamw.h"
#include "../core/dtypes.h"
#include "../core/quantize.h"

namespace sff {
namespace SFF_ISA {

// N elements of T in 32-bit words. Arrays that a step does not have are of no words.
template <class T, int N, bool There = true>
struct Packed {
    static constexpr int size = There ? N * static_cast<int>(sizeof(T)) / 4 : 0;
    uint32_t words[size > 0 ? size : 1];
};

template <class T>
SFF_INLINE uint32_t element_bits(const uint32_t* words, int i) {
    if constexpr (sizeof(T) == 4) return words[i];
    if constexpr (sizeof(T) == 2) return words[i / 2] >> (16 * (i % 2)) & 0xffffu;
    return words[i / 4] >> (8 * (i % 4)) & 0xffu;
}

// Puts an element's bits into a word that has zeros there.
template <class T>
SFF_INLINE void put_bits(uint32_t* words, int i, uint32_t bits) {
    if constexpr (sizeof(T) == 4) words[i] = bits;
    if constexpr (sizeof(T) == 2) words[i / 2] |= bits << (16 * (i % 2));
    if constexpr (sizeof(T) == 1) words[i / 4] |= bits << (8 * (i % 4));
}

template <class T>
SFF_INLINE float number(const uint32_t* words, int i) {
    const uint32_t bits = element_bits<T>(words, i);
    if constexpr (std::is_same<T, float>::value) {
        return from_bits(bits);
    } else {
        return widen(T{static_cast<uint16_t>(bits)});
    }
}

// Elements 2 * pair and 2 * pair + 1, rounded to nearest.
template <class T>
SFF_INLINE void put_pair(uint32_t* words, int pair, float x, float y) {
    if constexpr (std::is_same<T, float>::value) {
        words[2 * pair] = to_bits(canonical(x));
        words[2 * pair + 1] = to_bits(canonical(y));
    } else {
        words[pair] = narrow_pair<T>(x, y);
        if (x != x || y != y) {
            const T low = canonical(T{static_cast<uint16_t>(words[pair])}),
                    high = canonical(T{static_cast<uint16_t>(words[pair] >> 16)});
            words[pair] = low.bits | static_cast<uint32_t>(high.bits) << 16;
        }
    }
}

// The parameter's pair as it is stored, and with compensation what that takes away. halves: two rounding numbers.
template <class P, int Store>
SFF_INLINE void put_parameters(uint32_t* param, uint32_t* compensation, int pair, float x, float y, uint32_t halves) {
    if constexpr (Store == kStoreStochastic) {
        P low, high;
        narrow_stochastic(x, halves & 0xffffu, low);
        narrow_stochastic(y, halves >> 16, high);
        param[pair] = low.bits | static_cast<uint32_t>(high.bits) << 16;
    } else {
        put_pair<P>(param, pair, x, y);
        if constexpr (Store == kStoreCompensated)
            put_pair<P>(compensation, pair, x - number<P>(param, 2 * pair), y - number<P>(param, 2 * pair + 1));
    }
}

// A pair of second moments, dithered where they are bfloat16; dither: of the first of them.
template <class S>
SFF_INLINE void put_second_moments(uint32_t* words, int pair, float x, float y, uint32_t dither) {
    if constexpr (std::is_same<S, BFloat16>::value) {
        words[pair] =
            dithered_bfloat16<Scalar>(x, dither) >> 16 | (dithered_bfloat16<Scalar>(y, dither + kDitherStep) & 0xffff0000u);
    } else {
        put_pair<S>(words, pair, x, y);
    }
}

// Codes of N numbers with their block's scale; dither: of the first number, for second moments.
template <bool Signed, int N>
SFF_INLINE void put_codes(const float (&x)[N], float scale, uint32_t dither, uint32_t* words) {
    SFF_UNROLL
    for (int i = 0; i < N / 4; ++i) words[i] = 0;
    if (!(scale > 0.0f)) return;
    const float factor = encoding_factor(scale, Signed ? kSignedTop : kUnsignedTop);
    SFF_UNROLL
    for (int i = 0; i < N; ++i) {
        if constexpr (Signed) {
            put_bits<Int8>(words, i, encode_signed<Scalar>(x[i], factor));
        } else {
            put_bits<Int8>(words, i, encode_unsigned<Scalar>(x[i], factor, dither + static_cast<uint32_t>(i) * kDitherStep));
        }
    }
}

}  // namespace SFF_ISA
}  // namespace sff
