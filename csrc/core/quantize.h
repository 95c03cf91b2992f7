// States of the optimizer in fewer bits.
//
// Eight bits, a block of 256 elements at a time: code k stands for scale * map(k) with scale = largest magnitude in the
// block and map(k) = (y(k) - 1) / T, where y(k) is the fp32 number whose bits are those of 1.0f plus k << shift. A map is
// so a piecewise linear logarithm of 1 + T x, exactly 0 at k = 0 and exactly 1 at the last k:
//
//            codes       shift   T = y(last) - 1    nearest rounding, with s the scale
//   signed   0 ... 127    19     247                |error| <= 2^-5 (|x| + s / 247)     bit 7 is the sign
//   unsigned 0 ... 255    20     2^31 * 1.875 - 1   |error| <= 2^-4 (x + s * 2^-30)
//
// (half a step of y is y / 32 or y / 16 at most; positive numbers that are raised to code 1 move by s * 2^-34.9). Encoding what
// decoding gave returns the codes and the scale: the last code is in every block that is not zero, and both roundings together
// are below a millionth of a step.
//
// exp_avg is rounded to nearest. exp_avg_sq moves by a thousandth a step: rounding to nearest would hold it still, so
// that int8 and bfloat16 second moments are dithered: a number d in [0, 1) is added before truncation, and over the steps
// the mean is exact. d = frac(element * r + step * phi), an additive recurrence in both (M. Roberts, "The unreasonable
// effectiveness of quasirandom sequences", 2018), depends on nothing but the element's index and the step. A second
// moment that is not zero never becomes zero, which would let its element jump.
#pragma once

#include "scalar.h"

namespace sff {
namespace SFF_ISA {

constexpr float kSignedTop = 247.0f, kSignedUnit = 0x1.0953f4p-8f;  // T and 1 / T: 247 * unit rounds to 1
constexpr float kUnsignedTop = 4026531840.0f, kUnsignedUnit = 0x1.111112p-32f;
// The formulas take 2 y in the place of y, exactly: its bits are those of 2.0f with the code put in, as no code reaches the
// one bit that is set in 2.0f.
constexpr uint32_t kTwoBits = 0x40000000u;
constexpr float kSmallestScale = 0x1p-90f;     // blocks below count as zero: their codes would fall among the denormals
constexpr uint32_t kDitherStep = 0xC13FA9A9u;  // 2^32 / 1.3247...: the plastic number

struct Int8 {
    uint8_t code;
};

// What the codes of a block are multiplied by (decode) and its elements (encode). A block with a NaN or an infinity is
// NaN as a whole.
SFF_INLINE float block_scale(float largest, bool finite) {
    if (!finite) return from_bits(0x7fc00000u);
    return largest < kSmallestScale ? 0.0f : largest;
}
SFF_INLINE float encoding_factor(float scale, float top) { return scale > 0.0f ? 2.0f * top / scale : 0.0f; }

template <class L>
SFF_INLINE typename L::F magnitude(typename L::F x) {
    return from_bits(to_bits(x) & L::u(0x7fffffffu));
}

// Codes stand in the bits from L::code_bit on, zeros around them. Those that leave at bit 24 may have anything below.
template <class L>
SFF_INLINE typename L::F decode_signed(typename L::U code, typename L::F scale) {
    const auto twice = from_bits(select_bits(L::u(127u << 19), shifted<19 - L::code_bit>(code), L::u(kTwoBits)));
    const auto x = fused(twice, L::f(0.5f * kSignedUnit), L::f(-kSignedUnit)) * scale;
    return from_bits(select_bits(L::u(0x80000000u), shifted<24 - L::code_bit>(code), to_bits(x)));
}

template <class L>
SFF_INLINE typename L::U encode_signed(typename L::F x, typename L::F factor) {
    const auto twice = fused(magnitude<L>(x), factor, L::f(2.0f));
    constexpr uint32_t half = 1u << 18, bits = L::code_bit == 24 ? half : half - kTwoBits;
    const auto code = shifted<L::code_bit - 19>(to_bits(twice) + L::u(bits));
    return select_bits(L::u(128u << L::code_bit), shifted<L::code_bit - 24>(to_bits(x)), code);
}

template <class L>
SFF_INLINE typename L::F decode_unsigned(typename L::U code, typename L::F scale) {
    const auto twice = from_bits(shifted<20 - L::code_bit>(code) | L::u(kTwoBits));
    return fused(twice, L::f(0.5f * kUnsignedUnit), L::f(-kUnsignedUnit)) * scale;
}

// `dither` is a fraction of 2^32; half of it (2^31) rounds to nearest. Without Bounded the result is the same, or 0 in place of
// what two instructions less cannot tell: a positive number below code 1 that the dither does not lift, and one whose dither
// carries it over the last code.
template <class L, bool Bounded = true>
SFF_INLINE typename L::U encode_unsigned(typename L::F x, typename L::F factor, typename L::U dither) {
    auto twice = fused(x, factor, L::f(2.0f));
    if constexpr (Bounded) {
        twice = select_less(L::f(0.0f), x, larger(twice, L::f(2.0f * 1.125f)), twice);  // 1.125 is code 1
        twice = smaller(twice, L::f(2.0f * kUnsignedTop));
    }
    const auto code = shifted<L::code_bit - 20>(to_bits(twice) + shift_right<12>(dither));
    return L::code_bit == 24 ? code : code & L::u(255);
}

// The bits of a bfloat16 in the upper half: a dithered second moment. Infinity stays, NaN is the canonical one.
template <class L>
SFF_INLINE typename L::U dithered_bfloat16(typename L::F x, typename L::U dither) {
    const auto sum = from_bits(to_bits(x) + shift_right<16>(dither));
    const auto number = select_less(x, from_bits(L::u(0x7f800000u)), sum, from_bits(L::u(0x7fc00000u)));
    return to_bits(select_less(from_bits(L::u(0x7f7fffffu)), x, x, number));
}

}  // namespace SFF_ISA
}  // namespace sff
