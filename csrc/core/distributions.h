// Random words to random numbers: the transforms of random stream v1, each written once for every lane type.
//
// All polynomials are our own minimax fits (tools/fit_polynomials.py prints them with their errors).
#pragma once

#include "philox.h"
#include "task.h"

namespace sff {
namespace SFF_ISA {

// low + u * width with u = (word >> 8) * 2^-24 in [0, 1). `width_scaled` is width * 2^-24: the product is the same real
// number as u * width as long as it is no denormal, which the table builder guarantees (narrower ones are refused).
template <class L>
SFF_INLINE typename L::F uniform(typename L::U word, typename L::F low, typename L::F width_scaled) {
    return fused(signed_to_float(shift_right<8>(word)), width_scaled, low);
}

// A pair (exponent, mantissa - 1) of a positive normal x * 2^-bias with the mantissa in [sqrt(1/2), sqrt(2)).
template <class L>
SFF_INLINE void split_exponent(typename L::F x, int bias, typename L::F& exponent, typename L::F& f) {
    using U = typename L::U;
    constexpr uint32_t root_half = 0x3f3504f3u;  // bits of sqrt(1/2)
    const U shifted = to_bits(x) - L::u(root_half + (static_cast<uint32_t>(bias) << 23));
    exponent = signed_to_float(shift_right_signed<23>(shifted));
    f = from_bits((shifted & L::u(0x7fffffu)) + L::u(root_half)) - L::f(1.0f);
}

// c * ln(x * 2^-bias) for a positive normal x and a constant c.
template <class L>
SFF_INLINE typename L::F scaled_log(typename L::F x, int bias, double c) {
    using F = typename L::F;
    F exponent, f;
    split_exponent<L>(x, bias, exponent, f);
    F y = L::f(static_cast<float>(c * 0.12274210900068283));
    y = fused(y, f, L::f(static_cast<float>(c * -0.18712803721427917)));
    y = fused(y, f, L::f(static_cast<float>(c * 0.20410701632499695)));
    y = fused(y, f, L::f(static_cast<float>(c * -0.24905461072921753)));
    y = fused(y, f, L::f(static_cast<float>(c * 0.3332030475139618)));
    y = fused(y, f, L::f(static_cast<float>(c * -0.5000112652778625)));
    y = fused(y, f, L::f(static_cast<float>(c)));
    return fused(exponent, L::f(static_cast<float>(c * 0.69314718055994530942)), y * f);
}

// Two standard normals from two words.
// Source: Box & Muller 1958; u = float((w0 >> 1) | 1) * 2^-31 in (0, 1], angle t * pi/4 with t = float(int32(w1 << 2)) *
// 2^-31 in [-1, 1]; bit 30 of w1 negates the cosine, bit 31 swaps sine and cosine. At most 2e-5 off the exact value.
template <class L>
SFF_INLINE void box_muller(typename L::U w0, typename L::U w1, typename L::F& even, typename L::F& odd) {
    using F = typename L::F;
    constexpr double q = 0.78539816339744830962;  // pi / 4
    const F r = square_root(scaled_log<L>(signed_to_float(shift_right<1>(w0) | L::u(1)), 31, -2.0));
    const F t = signed_to_float(shift_left<2>(w1)) * L::f(4.656612873077392578125e-10f);
    const F z = t * t;
    F s = fused(L::f(static_cast<float>(0.00815163554257281 * q * q * q * q * q)), z,
                L::f(static_cast<float>(-0.16662480165576177 * q * q * q)));
    s = fused(s, z, L::f(static_cast<float>(0.9999985694116267 * q))) * t;
    F c = fused(L::f(static_cast<float>(-0.001359782213171741 * q * q * q * q * q * q)), z,
                L::f(static_cast<float>(0.04165629448876774 * q * q * q * q)));
    c = fused(c, z, L::f(static_cast<float>(-0.49999894779466647 * q * q)));
    c = fused(c, z, L::f(1.0f));
    c = from_bits(to_bits(c) ^ (shift_left<1>(w1) & L::u(0x80000000u)));
    even = r * select_by_sign(w1, s, c);
    odd = r * select_by_sign(w1, c, s);
}

// The magnitude of the standard normal quantile at the tail probability q in (0, 1/2]: -probit(q).
// Source: the form of M. Giles, "Approximating the erfinv function", GPU Computing Gems 2011: with w = -ln(4q(1-q)) a
// polynomial in w (w < 5) or in sqrt(w), times 1 - 2q. `Tail` leaves the second one out where no draw can need it.
template <class L, bool Tail>
SFF_INLINE typename L::F normal_quantile(typename L::F q) {
    using F = typename L::F;
    const F q4 = q * L::f(4.0f);
    const F w = scaled_log<L>(fused(L::f(0.0f) - q4, q, q4), 0, -1.0);
    const F k = w - L::f(2.5f);
    F y = L::f(4.6738159653614275e-07f);
    y = fused(y, k, L::f(-4.4940293264517095e-06f));
    y = fused(y, k, L::f(-6.015909548295895e-06f));
    y = fused(y, k, L::f(0.00030725286342203617f));
    y = fused(y, k, L::f(-0.0017736293375492096f));
    y = fused(y, k, L::f(-0.005905875936150551f));
    y = fused(y, k, L::f(0.3488031327724457f));
    y = fused(y, k, L::f(2.1233131885528564f));
    if (Tail) {
        const F s = square_root(w) - L::f(4.0f);
        F x = L::f(-1.7238760392501717e-06f);
        x = fused(x, s, L::f(2.0293487978051417e-05f));
        x = fused(x, s, L::f(-8.766529936110601e-05f));
        x = fused(x, s, L::f(0.0001629243342904374f));
        x = fused(x, s, L::f(-0.00013215409126132727f));
        x = fused(x, s, L::f(0.00027871778002008796f));
        x = fused(x, s, L::f(-0.0012109167873859406f));
        x = fused(x, s, L::f(0.0018978144507855177f));
        x = fused(x, s, L::f(1.427625298500061f));
        x = fused(x, s, L::f(5.430261611938477f));
        y = select_less(w, L::f(5.0f), y, x);
    }
    return y * fused(L::f(-2.0f), q, L::f(1.0f));
}

// A truncated normal by inversion. The lower and the upper tail probability of the drawn quantile are formed apart, each
// from its own end, so that the smaller one keeps full relative precision: P(a) + (k + 1/2) D and Q(b) + (2^24 - k - 1/2) D
// with k = word >> 8 and D = (P(b) - P(a)) * 2^-24.
template <class L, bool Tail>
SFF_INLINE typename L::F truncated_normal(typename L::U word, const float (&p)[8]) {
    using F = typename L::F;
    using U = typename L::U;
    const U k = shift_right<8>(word);
    const F lower = fused(signed_to_float(k) + L::f(0.5f), L::f(p[6]), L::f(p[4]));
    const F upper = fused(signed_to_float(L::u(0xffffffu) - k) + L::f(0.5f), L::f(p[6]), L::f(p[5]));
    const F magnitude = normal_quantile<L, Tail>(smaller(lower, upper));
    const F z = select_less(lower, upper, L::f(0.0f) - magnitude, magnitude);
    return smaller(larger(fused(L::f(p[1]), z, L::f(p[0])), L::f(p[2])), L::f(p[3]));
}

enum { kTruncNormalTail = 5 };  // kTruncNormal with its tail polynomial

// The four draws of one block from its words, in fp32.
template <int Kind>
SFF_INLINE void block_draws(const uint32_t (&w)[4], const float (&p)[8], float (&draws)[4]) {
    if (Kind == kUniform) {
        const float scaled = p[1] * 5.9604644775390625e-8f;
        SFF_UNROLL
        for (int i = 0; i < 4; ++i) draws[i] = uniform<Scalar>(w[i], p[0], scaled);
    } else if (Kind == kNormal) {
        SFF_UNROLL
        for (int i = 0; i < 4; i += 2) {
            float even, odd;
            box_muller<Scalar>(w[i], w[i + 1], even, odd);
            draws[i] = fused(p[1], even, p[0]);
            draws[i + 1] = fused(p[1], odd, p[0]);
        }
    } else {
        SFF_UNROLL
        for (int i = 0; i < 4; ++i) draws[i] = truncated_normal<Scalar, Kind == kTruncNormalTail>(w[i], p);
    }
}

SFF_INLINE void draw_block(const Task& task, uint64_t block, float (&draws)[4]) {
    uint32_t w[4];
    philox_block(task.seed, task.stream, block, w);
    if (task.distribution == kUniform) return block_draws<kUniform>(w, task.p, draws);
    if (task.distribution == kNormal) return block_draws<kNormal>(w, task.p, draws);
    return block_draws<kTruncNormalTail>(w, task.p, draws);
}

}  // namespace SFF_ISA
}  // namespace sff
