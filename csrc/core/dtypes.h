// bfloat16, float16, float32 and float64 as bits: exact widening, and the one rounding at the end.
//
// NaN becomes the canonical quiet NaN of the dtype. Denormals are kept. Stochastic rounding takes 16 random bits h and
// rounds away from zero with probability (dropped fraction), exactly for bfloat16 and to within 2^-16 of a unit in the
// last place for float16 below its normal range.
#pragma once

#include <type_traits>

#include "scalar.h"

namespace sff {
namespace SFF_ISA {

struct BFloat16 {
    static constexpr uint16_t nan = 0x7fc0u;
    uint16_t bits;
};
struct Float16 {
    static constexpr uint16_t nan = 0x7e00u;
    uint16_t bits;
};

constexpr uint32_t kNan32 = 0x7fc00000u;
constexpr uint64_t kNan64 = 0x7ff8000000000000ull;

SFF_INLINE bool is_nan_bits(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

SFF_INLINE float widen(float x) { return x; }
SFF_INLINE float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
SFF_INLINE float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
    float result;  // exact; a NaN's payload is lost, and no result shows it
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
#else
    const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, mantissa = x.bits & 0x3ffu;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24: exact
    return from_bits(sign | to_bits(magnitude));
#endif
}

SFF_INLINE float canonical(float x) { return is_nan_bits(to_bits(x)) ? from_bits(kNan32) : x; }
SFF_INLINE void narrow(float x, float& out) { out = canonical(x); }

// To nearest even, lanes that are no NaN; the result stands in the low halves.
template <class L>
SFF_INLINE typename L::U nearest(typename L::F x, BFloat16) {
    const auto bits = to_bits(x);
    return shift_right<16>(bits + (L::u(0x7fffu) + (shift_right<16>(bits) & L::u(1))));
}

SFF_INLINE void narrow(float x, BFloat16& out) {
    out.bits = is_nan_bits(to_bits(x)) ? BFloat16::nan : static_cast<uint16_t>(nearest<Scalar>(x, BFloat16{}));
}

SFF_INLINE void narrow(float x, Float16& out) {
    const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        out.bits = Float16::nan;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
        out.bits = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (magnitude >= 0x38800000u) {  // 2^-14: the normal range
        const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
        out.bits = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
    } else {  // adding 2^-1 in fp32 leaves units of 2^-24, rounded to nearest even by the addition itself
        const float sum = from_bits(magnitude) + 0.5f;
        out.bits = static_cast<uint16_t>(sign | (to_bits(sum) - 0x3f000000u));
    }
}

// Stochastic rounding of lanes that are no NaN; h has 16 random bits a lane, the result stands in the low halves. An infinity
// has no fraction that h could carry into.
template <class L>
SFF_INLINE typename L::U stochastic(typename L::F x, typename L::U h, BFloat16) {
    return shift_right<16>(to_bits(x) + h);
}

template <class L>
SFF_INLINE typename L::U stochastic(typename L::F x, typename L::U h, Float16) {
    using F = typename L::F;
    const F magnitude = from_bits(to_bits(x) & L::u(0x7fffffffu)), smallest_normal = L::f(6.103515625e-5f);  // 2^-14
    // From 2^16 on everything is infinity, whose code comes out of 2^16 itself.
    const auto normal = shift_right<13>(to_bits(smaller(magnitude, L::f(65536.0f))) - L::u(0x38000000u) + shift_right<3>(h));
    // Below the normal range: units of 2^-24 with 16 binary places kept below them, so 2^40: exact, up to 2^26.
    const auto units = truncated(smaller(magnitude, smallest_normal) * L::f(1099511627776.0f));
    const F half = select_less(magnitude, smallest_normal, from_bits(shift_right<16>(units + h)), from_bits(normal));
    return to_bits(half) | (shift_right<16>(to_bits(x)) & L::u(0x8000u));
}

template <class T>
SFF_INLINE void narrow_stochastic(float x, uint32_t h, T& out) {
    out.bits = is_nan_bits(to_bits(x)) ? T::nan : static_cast<uint16_t>(stochastic<Scalar>(x, h, T{}));
}

// Two neighbours at once as the halves of a word, the first one low. A device leaves NaN as its own conversion makes it:
// `canonical` turns that into what `narrow` stores.
template <class T>
SFF_INLINE uint32_t narrow_pair(float x, float y) {
#if defined(__CUDA_ARCH__)
    uint32_t bits;  // to nearest even, denormals kept
    if constexpr (std::is_same<T, BFloat16>::value) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
    }
    return bits;
#else
    T low, high;
    narrow(x, low);
    narrow(y, high);
    return low.bits | static_cast<uint32_t>(high.bits) << 16;
#endif
}

SFF_INLINE BFloat16 canonical(BFloat16 x) { return (x.bits & 0x7fffu) > 0x7f80u ? BFloat16{BFloat16::nan} : x; }
SFF_INLINE Float16 canonical(Float16 x) { return (x.bits & 0x7fffu) > 0x7c00u ? Float16{Float16::nan} : x; }

// One element: theta = fma(shrink, theta, perturb * draw). With shrink 0 the old value is not read (it counts as +0), so
// that uninitialised memory can be filled.
SFF_INLINE float mixed(float old, float shrink, float perturb, float draw) { return fused(shrink, old, perturb * draw); }

template <class T>
SFF_INLINE float interpolated(T old, float shrink, float perturb, float draw) {
    return mixed(shrink == 0.0f ? 0.0f : widen(old), shrink, perturb, draw);
}

SFF_INLINE double interpolated(double old, double shrink, double perturb, float draw) {
    const double x = fused(shrink, shrink == 0.0 ? 0.0 : old, perturb * static_cast<double>(draw));
    if (x == x) return x;
    const uint64_t bits = kNan64;  // a device has no address for the constant itself
    double nan;
    memcpy(&nan, &bits, sizeof nan);
    return nan;
}

}  // namespace SFF_ISA
}  // namespace sff
