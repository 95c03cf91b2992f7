// Four fp32 lanes in plain C++: the baseline of every architecture. See core/scalar.h for what each operation means.
#pragma once

#include "../core/dtypes.h"

namespace sff {
namespace SFF_ISA {

struct Portable {
    static constexpr int lanes = 4;            // fp32 lanes of F
    static constexpr int blocks = lanes / 2;   // Philox blocks of Q
    static constexpr int interleave = 1;
    static constexpr const char* name = "baseline";

    struct F {
        float v[lanes];
    };
    struct U {
        uint32_t v[lanes];
    };
    struct Q {
        uint64_t v[blocks];
    };

    static SFF_INLINE F f(float x) { return {{x, x, x, x}}; }
    static SFF_INLINE U u(uint32_t x) { return {{x, x, x, x}}; }
    static SFF_INLINE Q q(uint64_t x) { return {{x, x}}; }
    static SFF_INLINE Q first_products(uint64_t m) { return {{0, m}}; }

    static SFF_INLINE U load_words(const uint32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static SFF_INLINE F load_table(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static SFF_INLINE U load_bytes(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static SFF_INLINE void store_bytes(uint8_t* p, U a) {
        for (int i = 0; i < lanes; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
    }
    static SFF_INLINE float largest(F a) { return larger(larger(a.v[0], a.v[1]), larger(a.v[2], a.v[3])); }
    static SFF_INLINE void store_upper_halves(BFloat16* p, U a, U b) {
        for (int i = 0; i < lanes; ++i) {
            p[i].bits = static_cast<uint16_t>(a.v[i] >> 16);
            p[lanes + i].bits = static_cast<uint16_t>(b.v[i] >> 16);
        }
    }
    template <class T>
    static SFF_INLINE F load(const T* p) {
        return {{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
    }
    template <class T>
    static SFF_INLINE void store_pair(T* p, F a, F b) {
        for (int i = 0; i < lanes; ++i) {
            narrow(a.v[i], p[i]);
            narrow(b.v[i], p[lanes + i]);
        }
    }
    template <class T>
    static SFF_INLINE void store_pair_stochastic(T* p, F a, F b, const uint16_t* h) {
        for (int i = 0; i < lanes; ++i) {
            narrow_stochastic(a.v[i], h[i], p[i]);
            narrow_stochastic(b.v[i], h[lanes + i], p[lanes + i]);
        }
    }
    static SFF_INLINE void interpolate(double* p, double shrink, double perturb, F draw) {
        for (int i = 0; i < lanes; ++i) p[i] = interpolated(p[i], shrink, perturb, draw.v[i]);
    }
    static SFF_INLINE void prefetch(uintptr_t) {}
};

#define SFF_LANEWISE(type, expression)                        \
    {                                                         \
        Portable::type r;                                     \
        for (int i = 0; i < Portable::lanes; ++i) r.v[i] = expression; \
        return r;                                             \
    }
SFF_INLINE Portable::F operator+(Portable::F a, Portable::F b) SFF_LANEWISE(F, a.v[i] + b.v[i])
SFF_INLINE Portable::F operator-(Portable::F a, Portable::F b) SFF_LANEWISE(F, a.v[i] - b.v[i])
SFF_INLINE Portable::F operator*(Portable::F a, Portable::F b) SFF_LANEWISE(F, a.v[i] * b.v[i])
SFF_INLINE Portable::F operator/(Portable::F a, Portable::F b) SFF_LANEWISE(F, a.v[i] / b.v[i])
SFF_INLINE Portable::U operator+(Portable::U a, Portable::U b) SFF_LANEWISE(U, a.v[i] + b.v[i])
SFF_INLINE Portable::U operator-(Portable::U a, Portable::U b) SFF_LANEWISE(U, a.v[i] - b.v[i])
SFF_INLINE Portable::U operator&(Portable::U a, Portable::U b) SFF_LANEWISE(U, a.v[i] & b.v[i])
SFF_INLINE Portable::U operator|(Portable::U a, Portable::U b) SFF_LANEWISE(U, a.v[i] | b.v[i])
SFF_INLINE Portable::U operator^(Portable::U a, Portable::U b) SFF_LANEWISE(U, a.v[i] ^ b.v[i])
SFF_INLINE Portable::F fused(Portable::F a, Portable::F b, Portable::F c) SFF_LANEWISE(F, fused(a.v[i], b.v[i], c.v[i]))
SFF_INLINE Portable::F square_root(Portable::F a) SFF_LANEWISE(F, square_root(a.v[i]))
SFF_INLINE Portable::U to_bits(Portable::F a) SFF_LANEWISE(U, to_bits(a.v[i]))
SFF_INLINE Portable::F from_bits(Portable::U a) SFF_LANEWISE(F, from_bits(a.v[i]))
SFF_INLINE Portable::F signed_to_float(Portable::U a) SFF_LANEWISE(F, signed_to_float(a.v[i]))
template <int S>
SFF_INLINE Portable::U shift_left(Portable::U a) SFF_LANEWISE(U, a.v[i] << S)
template <int S>
SFF_INLINE Portable::U shift_right(Portable::U a) SFF_LANEWISE(U, a.v[i] >> S)
template <int S>
SFF_INLINE Portable::U shift_right_signed(Portable::U a) SFF_LANEWISE(U, shift_right_signed<S>(a.v[i]))
SFF_INLINE Portable::F select_by_sign(Portable::U s, Portable::F a, Portable::F b)
    SFF_LANEWISE(F, select_by_sign(s.v[i], a.v[i], b.v[i]))
SFF_INLINE Portable::F select_less(Portable::F a, Portable::F b, Portable::F x, Portable::F y)
    SFF_LANEWISE(F, select_less(a.v[i], b.v[i], x.v[i], y.v[i]))
SFF_INLINE Portable::F smaller(Portable::F a, Portable::F b) SFF_LANEWISE(F, smaller(a.v[i], b.v[i]))
SFF_INLINE Portable::F larger(Portable::F a, Portable::F b) SFF_LANEWISE(F, larger(a.v[i], b.v[i]))
#undef SFF_LANEWISE

SFF_INLINE Portable::Q operator+(Portable::Q a, Portable::Q b) { return {{a.v[0] + b.v[0], a.v[1] + b.v[1]}}; }
SFF_INLINE Portable::Q multiply_low_halves(Portable::Q a, Portable::Q b) {
    return {{multiply_low_halves(a.v[0], b.v[0]), multiply_low_halves(a.v[1], b.v[1])}};
}
SFF_INLINE Portable::Q high_half(Portable::Q a) { return {{a.v[0] >> 32, a.v[1] >> 32}}; }
SFF_INLINE Portable::Q exclusive_or(Portable::Q a, Portable::Q b) { return {{a.v[0] ^ b.v[0], a.v[1] ^ b.v[1]}}; }
SFF_INLINE Portable::Q exclusive_or(Portable::Q a, Portable::Q b, Portable::Q c) {
    return {{a.v[0] ^ b.v[0] ^ c.v[0], a.v[1] ^ b.v[1] ^ c.v[1]}};
}

// Low halves of a in the even 32-bit lanes, of b in the odd ones.
SFF_INLINE Portable::U join_low_halves(Portable::Q a, Portable::Q b) {
    return {{static_cast<uint32_t>(a.v[0]), static_cast<uint32_t>(b.v[0]), static_cast<uint32_t>(a.v[1]),
             static_cast<uint32_t>(b.v[1])}};
}
// Pairs of 64-bit (interleave_words) or 32-bit (interleave_floats) lanes, taken in turn within each 128-bit lane.
SFF_INLINE void interleave_words(Portable::U a, Portable::U b, Portable::U& low, Portable::U& high) {
    low = {{a.v[0], a.v[1], b.v[0], b.v[1]}};
    high = {{a.v[2], a.v[3], b.v[2], b.v[3]}};
}
SFF_INLINE void interleave_floats(Portable::F a, Portable::F b, Portable::F& low, Portable::F& high) {
    low = {{a.v[0], b.v[0], a.v[1], b.v[1]}};
    high = {{a.v[2], b.v[2], a.v[3], b.v[3]}};
}
SFF_INLINE void store_words(uint32_t* p, Portable::U a) { memcpy(p, a.v, sizeof a.v); }

}  // namespace SFF_ISA
}  // namespace sff
