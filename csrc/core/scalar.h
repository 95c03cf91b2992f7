// One lane: float, uint32_t and uint64_t with the operations that the formulas are written in.
//
// A lane type L names L::F (fp32 lanes), L::U (32-bit lanes) and L::Q (64-bit lanes of which the low half counts) and
// has f(), u() and q() to broadcast; L::code_bit is where in a 32-bit lane it holds the code of an int8 state. The free functions
// below exist for each of them. They are the only operations allowed in a formula: correctly rounded +, -, *, fused multiply-add
// and square root, shifts, masks and selections, so that every backend gives the same bits.
#pragma once

#include <cmath>

#include "config.h"

namespace sff {
namespace SFF_ISA {

SFF_INLINE uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

SFF_INLINE float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// Correctly rounded a * b + c. Machines without the instruction take the exact product in double, a two-sum, and round
// to odd before the only rounding to float (Boldo & Melquiond 2008).
SFF_INLINE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    const double product = static_cast<double>(a) * b, addend = c;
    const double sum = product + addend;
    const double back = sum - product;
    const double error = (product - (sum - back)) + (addend - back);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    const bool inexact = error != 0 && error == error && (bits & 1) == 0 && (bits << 1) < (0x7ffull << 53);
    if (inexact) bits += (error > 0) == (sum > 0) ? 1 : -1;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return static_cast<float>(odd);
#endif
}

SFF_INLINE double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
    return __fma_rn(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
}

SFF_INLINE float square_root(float x) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}

SFF_INLINE double square_root(double x) {
#if defined(__CUDA_ARCH__)
    return __dsqrt_rn(x);
#else
    return __builtin_sqrt(x);
#endif
}

template <int S>
SFF_INLINE uint32_t shift_left(uint32_t x) {
    return x << S;
}
template <int S>
SFF_INLINE uint32_t shift_right(uint32_t x) {
    return x >> S;
}
template <int S>
SFF_INLINE uint32_t shift_right_signed(uint32_t x) {
    return static_cast<uint32_t>(static_cast<int32_t>(x) >> S);
}
// To the left by S, to the right by -S.
template <int S, class U>
SFF_INLINE U shifted(U x) {
    if constexpr (S > 0) return shift_left<S>(x);
    if constexpr (S < 0) return shift_right<-S>(x);
    return x;
}
SFF_INLINE uint32_t select_bits(uint32_t mask, uint32_t if_set, uint32_t if_clear) {
    return (if_set & mask) | (if_clear & ~mask);
}
SFF_INLINE float signed_to_float(uint32_t x) { return static_cast<float>(static_cast<int32_t>(x)); }
SFF_INLINE uint32_t truncated(float x) { return static_cast<uint32_t>(static_cast<int32_t>(x)); }  // |x| < 2^31
SFF_INLINE float select_by_sign(uint32_t sign, float if_set, float if_clear) {
    return static_cast<int32_t>(sign) < 0 ? if_set : if_clear;
}
SFF_INLINE float select_less(float a, float b, float if_less, float otherwise) { return a < b ? if_less : otherwise; }
SFF_INLINE float smaller(float a, float b) { return a < b ? a : b; }
SFF_INLINE float larger(float a, float b) { return a > b ? a : b; }

// Philox works on 64-bit lanes: a product needs both halves, and only the low half of an operand is read.
SFF_INLINE uint64_t multiply_low_halves(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
    uint64_t product;  // nvcc adds the products of the empty high halves to what is written in C
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(static_cast<uint32_t>(b)));
    return product;
#else
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) * static_cast<uint32_t>(b);
#endif
}
SFF_INLINE uint64_t high_half(uint64_t x) { return x >> 32; }
// The same where vectors are shuffled instead of shifted: the two instructions take different ports.
SFF_INLINE uint64_t high_half_shuffled(uint64_t x) { return x >> 32; }
SFF_INLINE uint64_t to_high_half(uint64_t x) { return x << 32; }
SFF_INLINE uint64_t exclusive_or(uint64_t a, uint64_t b) { return a ^ b; }
SFF_INLINE uint64_t exclusive_or(uint64_t a, uint64_t b, uint64_t c) { return a ^ b ^ c; }

struct Scalar {
    using F = float;
    using U = uint32_t;
    using Q = uint64_t;
    static constexpr int code_bit = 0;
    static SFF_INLINE F f(float x) { return x; }
    static SFF_INLINE U u(uint32_t x) { return x; }
    static SFF_INLINE Q q(uint64_t x) { return x; }
};

}  // namespace SFF_ISA
}  // namespace sff
