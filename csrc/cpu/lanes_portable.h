// Four fp32 lanes in plain C++: the baseline of every architecture. See core/scalar.h for what each operation means.
#pragma once

#include "../core/dtypes.h"

namespace sff {
namespace SFF_ISA {

struct Portable {
    static constexpr int lanes = 4;           // fp32 lanes of F
    static constexpr int blocks = lanes / 2;  // Philox blocks of Q
    static constexpr int interleave = 1;      // units whose random words are made in step
    static constexpr int together = 1;        // units whose draws are made from their words in step
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
    static constexpr int code_bit = 0;
    static SFF_INLINE U load_codes(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    // Stores four vectors of codes, and tells whether one of them is 0. Made once before a loop.
    struct CodeStore {
        SFF_INLINE bool operator()(uint8_t* p, const U (&a)[4]) const {
            bool zero = false;
            for (int i = 0; i < 4 * lanes; ++i) {
                p[i] = static_cast<uint8_t>(a[i / lanes].v[i % lanes]);
                zero = zero || p[i] == 0;
            }
            return zero;
        }
    };
    static SFF_INLINE U kept(U x) { return x; }  // a constant that a loop shall not make again and again
    // The larger magnitude of two; of a NaN and a number either.
    static SFF_INLINE F larger_magnitude(F a, F b) {
        F r;
        for (int i = 0; i < lanes; ++i)
            r.v[i] = larger(from_bits(to_bits(a.v[i]) & 0x7fffffffu), from_bits(to_bits(b.v[i]) & 0x7fffffffu));
        return r;
    }
    static SFF_INLINE uint32_t largest(U a) {
        uint32_t result = 0;
        for (int i = 0; i < lanes; ++i) result = a.v[i] > result ? a.v[i] : result;
        return result;
    }
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
    // Remembers whether a NaN was among the lanes. `store` may leave NaNs as they are, for who keeps such a note.
    struct NanNote {
        SFF_INLINE void add(F, F) {}
        SFF_INLINE bool any() const { return false; }  // `store` makes them canonical itself
    };
    template <class T>
    static SFF_INLINE void store(T* p, F a) {
        for (int i = 0; i < lanes; ++i) narrow(a.v[i], p[i]);
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
    static SFF_INLINE void prefetch(uintptr_t) {}           // a line that is needed soon
    static SFF_INLINE void prefetch_to_write(uintptr_t) {}  // the same, of a line that is going to be written
    static SFF_INLINE void prefetch_far(uintptr_t) {
    }  // into the second-level cache, which leaves the first level's few requests free
};

#define SFF_LANEWISE(type, expression)                                 \
    {                                                                  \
        Portable::type r;                                              \
        for (int i = 0; i < Portable::lanes; ++i) r.v[i] = expression; \
        return r;                                                      \
    }
SFF_INLINE Portable::F operator+(Portable::F a, Portable::F b)
    SFF_LANEWISE(F, a.v[i] + b.v[i]) SFF_INLINE Portable::F operator-(Portable::F a, Portable::F b)
        SFF_LANEWISE(F, a.v[i] - b.v[i]) SFF_INLINE Portable::F operator*(Portable::F a, Portable::F b)
            SFF_LANEWISE(F, a.v[i] * b.v[i]) SFF_INLINE Portable::F operator/(Portable::F a, Portable::F b)
                SFF_LANEWISE(F, a.v[i] / b.v[i]) SFF_INLINE Portable::U operator+(Portable::U a, Portable::U b)
                    SFF_LANEWISE(U, a.v[i] + b.v[i]) SFF_INLINE Portable::U operator-(Portable::U a, Portable::U b)
                        SFF_LANEWISE(U, a.v[i] - b.v[i]) SFF_INLINE Portable::U operator&(Portable::U a, Portable::U b)
                            SFF_LANEWISE(U, a.v[i] & b.v[i]) SFF_INLINE Portable::U operator|(Portable::U a, Portable::U b)
                                SFF_LANEWISE(U, a.v[i] | b.v[i]) SFF_INLINE Portable::U operator^(Portable::U a, Portable::U b)
                                    SFF_LANEWISE(U, a.v[i] ^ b.v[i]) SFF_INLINE Portable::F
    fused(Portable::F a, Portable::F b, Portable::F c) SFF_LANEWISE(F, fused(a.v[i], b.v[i], c.v[i])) SFF_INLINE Portable::F
    square_root(Portable::F a) SFF_LANEWISE(F, square_root(a.v[i])) SFF_INLINE Portable::U to_bits(Portable::F a)
        SFF_LANEWISE(U, to_bits(a.v[i])) SFF_INLINE Portable::F from_bits(Portable::U a)
            SFF_LANEWISE(F, from_bits(a.v[i])) SFF_INLINE Portable::F
    signed_to_float(Portable::U a) SFF_LANEWISE(F, signed_to_float(a.v[i])) template <int S>
    SFF_INLINE Portable::U shift_left(Portable::U a) SFF_LANEWISE(U, a.v[i] << S) template <int S>
    SFF_INLINE Portable::U shift_right(Portable::U a) SFF_LANEWISE(U, a.v[i] >> S) template <int S>
    SFF_INLINE Portable::U shift_right_signed(Portable::U a) SFF_LANEWISE(U, shift_right_signed<S>(a.v[i])) SFF_INLINE Portable::F
    select_by_sign(Portable::U s, Portable::F a, Portable::F b)
        SFF_LANEWISE(F, select_by_sign(s.v[i], a.v[i], b.v[i])) SFF_INLINE Portable::F
    select_less(Portable::F a, Portable::F b, Portable::F x, Portable::F y)
        SFF_LANEWISE(F, select_less(a.v[i], b.v[i], x.v[i], y.v[i])) SFF_INLINE Portable::U
    select_bits(Portable::U mask, Portable::U a, Portable::U b)
        SFF_LANEWISE(U, select_bits(mask.v[i], a.v[i], b.v[i])) SFF_INLINE Portable::U larger(Portable::U a, Portable::U b)
            SFF_LANEWISE(U, a.v[i] > b.v[i] ? a.v[i] : b.v[i]) SFF_INLINE Portable::F smaller(Portable::F a, Portable::F b)
                SFF_LANEWISE(F, smaller(a.v[i], b.v[i])) SFF_INLINE Portable::F larger(Portable::F a, Portable::F b)
                    SFF_LANEWISE(F, larger(a.v[i], b.v[i]))
#undef SFF_LANEWISE

                        SFF_INLINE Portable::Q operator+(Portable::Q a, Portable::Q b) {
    return {{a.v[0] + b.v[0], a.v[1] + b.v[1]}};
}
SFF_INLINE Portable::Q multiply_low_halves(Portable::Q a, Portable::Q b) {
    return {{multiply_low_halves(a.v[0], b.v[0]), multiply_low_halves(a.v[1], b.v[1])}};
}
SFF_INLINE Portable::Q high_half(Portable::Q a) { return {{a.v[0] >> 32, a.v[1] >> 32}}; }
SFF_INLINE Portable::Q high_half_shuffled(Portable::Q a) { return high_half(a); }
SFF_INLINE Portable::Q to_high_half(Portable::Q a) { return {{a.v[0] << 32, a.v[1] << 32}}; }
SFF_INLINE Portable::Q exclusive_or(Portable::Q a, Portable::Q b) { return {{a.v[0] ^ b.v[0], a.v[1] ^ b.v[1]}}; }
SFF_INLINE Portable::Q exclusive_or(Portable::Q a, Portable::Q b, Portable::Q c) {
    return {{a.v[0] ^ b.v[0] ^ c.v[0], a.v[1] ^ b.v[1] ^ c.v[1]}};
}

// The same halves of a and b, that of a in the low half of the result.
SFF_INLINE Portable::Q join_low_halves(Portable::Q a, Portable::Q b) {
    return {{static_cast<uint32_t>(a.v[0]) | b.v[0] << 32, static_cast<uint32_t>(a.v[1]) | b.v[1] << 32}};
}
SFF_INLINE Portable::Q join_high_halves(Portable::Q a, Portable::Q b) {
    return {{a.v[0] >> 32 | (b.v[0] >> 32) << 32, a.v[1] >> 32 | (b.v[1] >> 32) << 32}};
}
// All 32-bit lanes, the low half of each 64-bit lane first.
SFF_INLINE Portable::U both_halves(Portable::Q a) {
    return {{static_cast<uint32_t>(a.v[0]), static_cast<uint32_t>(a.v[0] >> 32), static_cast<uint32_t>(a.v[1]),
             static_cast<uint32_t>(a.v[1] >> 32)}};
}
// 64-bit lanes of a and b taken in turn within each 128-bit lane, the high half of each first.
SFF_INLINE void interleave_pairs(Portable::Q a, Portable::Q b, Portable::U& low, Portable::U& high) {
    const auto upper = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
    const auto lower = [](uint64_t x) { return static_cast<uint32_t>(x); };
    low = {{upper(a.v[0]), lower(a.v[0]), upper(b.v[0]), lower(b.v[0])}};
    high = {{upper(a.v[1]), lower(a.v[1]), upper(b.v[1]), lower(b.v[1])}};
}
// 32-bit lanes taken in turn within each 128-bit lane.
SFF_INLINE void interleave_floats(Portable::F a, Portable::F b, Portable::F& low, Portable::F& high) {
    low = {{a.v[0], b.v[0], a.v[1], b.v[1]}};
    high = {{a.v[2], b.v[2], a.v[3], b.v[3]}};
}
SFF_INLINE void store_words(uint32_t* p, Portable::U a) { memcpy(p, a.v, sizeof a.v); }

}  // namespace SFF_ISA
}  // namespace sff
