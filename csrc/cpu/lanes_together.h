// Several vectors in step: each operation of a formula is done for all of them before the next one. A formula is a long chain
// of dependent operations; the processor looks ahead too few instructions to find the next chain by itself.
#pragma once

#include "../core/config.h"

namespace sff {
namespace SFF_ISA {

template <class L, int N>
struct Together {
    struct F {
        typename L::F v[N];
    };
    struct U {
        typename L::U v[N];
    };

    static SFF_INLINE F f(float x) {
        F r;
        SFF_UNROLL
        for (int i = 0; i < N; ++i) r.v[i] = L::f(x);
        return r;
    }
    static SFF_INLINE U u(uint32_t x) {
        U r;
        SFF_UNROLL
        for (int i = 0; i < N; ++i) r.v[i] = L::u(x);
        return r;
    }

#define SFF_ALL(type, expression)                        \
    {                                                    \
        type r;                                          \
        SFF_UNROLL                                       \
        for (int i = 0; i < N; ++i) r.v[i] = expression; \
        return r;                                        \
    }
    friend SFF_INLINE F operator+(F x, F y) SFF_ALL(F, x.v[i] + y.v[i]) friend SFF_INLINE F operator-(F x, F y)
        SFF_ALL(F, x.v[i] - y.v[i]) friend SFF_INLINE F operator*(F x, F y)
            SFF_ALL(F, x.v[i] * y.v[i]) friend SFF_INLINE U operator+(U x, U y)
                SFF_ALL(U, x.v[i] + y.v[i]) friend SFF_INLINE U operator-(U x, U y)
                    SFF_ALL(U, x.v[i] - y.v[i]) friend SFF_INLINE U operator&(U x, U y)
                        SFF_ALL(U, x.v[i] & y.v[i]) friend SFF_INLINE U operator|(U x, U y)
                            SFF_ALL(U, x.v[i] | y.v[i]) friend SFF_INLINE U operator^(U x, U y)
                                SFF_ALL(U, x.v[i] ^ y.v[i]) friend SFF_INLINE F
        fused(F x, F y, F z) SFF_ALL(F, fused(x.v[i], y.v[i], z.v[i])) friend SFF_INLINE F square_root(F x)
            SFF_ALL(F, square_root(x.v[i])) friend SFF_INLINE F smaller(F x, F y)
                SFF_ALL(F, smaller(x.v[i], y.v[i])) friend SFF_INLINE F larger(F x, F y)
                    SFF_ALL(F, larger(x.v[i], y.v[i])) friend SFF_INLINE F select_less(F x, F y, F less, F otherwise)
                        SFF_ALL(F, select_less(x.v[i], y.v[i], less.v[i], otherwise.v[i])) friend SFF_INLINE F
        select_by_sign(U x, F set, F clear) SFF_ALL(F, select_by_sign(x.v[i], set.v[i], clear.v[i])) friend SFF_INLINE U
        to_bits(F x) SFF_ALL(U, to_bits(x.v[i])) friend SFF_INLINE F from_bits(U x)
            SFF_ALL(F, from_bits(x.v[i])) friend SFF_INLINE F signed_to_float(U x)
                SFF_ALL(F, signed_to_float(x.v[i])) template <int S>
                friend SFF_INLINE U shift_left(U x) SFF_ALL(U, shift_left<S>(x.v[i])) template <int S>
                friend SFF_INLINE U shift_right(U x) SFF_ALL(U, shift_right<S>(x.v[i])) template <int S>
                friend SFF_INLINE U shift_right_signed(U x) SFF_ALL(U, shift_right_signed<S>(x.v[i]))
#undef SFF_ALL
};

}  // namespace SFF_ISA
}  // namespace sff
