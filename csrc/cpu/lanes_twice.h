// Two vectors in step: each operation of a formula is done for both before the next one, so that a long chain of dependent
// operations leaves no port idle.
#pragma once

#include "../core/config.h"

namespace sff {
namespace SFF_ISA {

template <class L>
struct Twice {
    struct F {
        typename L::F a, b;
    };
    struct U {
        typename L::U a, b;
    };
    static SFF_INLINE F f(float x) { return {L::f(x), L::f(x)}; }
    static SFF_INLINE U u(uint32_t x) { return {L::u(x), L::u(x)}; }

    friend SFF_INLINE F operator+(F x, F y) { return {x.a + y.a, x.b + y.b}; }
    friend SFF_INLINE F operator-(F x, F y) { return {x.a - y.a, x.b - y.b}; }
    friend SFF_INLINE F operator*(F x, F y) { return {x.a * y.a, x.b * y.b}; }
    friend SFF_INLINE U operator+(U x, U y) { return {x.a + y.a, x.b + y.b}; }
    friend SFF_INLINE U operator-(U x, U y) { return {x.a - y.a, x.b - y.b}; }
    friend SFF_INLINE U operator&(U x, U y) { return {x.a & y.a, x.b & y.b}; }
    friend SFF_INLINE F fused(F x, F y, F z) { return {fused(x.a, y.a, z.a), fused(x.b, y.b, z.b)}; }
    friend SFF_INLINE F square_root(F x) { return {square_root(x.a), square_root(x.b)}; }
    friend SFF_INLINE F smaller(F x, F y) { return {smaller(x.a, y.a), smaller(x.b, y.b)}; }
    friend SFF_INLINE F larger(F x, F y) { return {larger(x.a, y.a), larger(x.b, y.b)}; }
    friend SFF_INLINE F select_less(F x, F y, F less, F otherwise) {
        return {select_less(x.a, y.a, less.a, otherwise.a), select_less(x.b, y.b, less.b, otherwise.b)};
    }
    friend SFF_INLINE U to_bits(F x) { return {to_bits(x.a), to_bits(x.b)}; }
    friend SFF_INLINE F from_bits(U x) { return {from_bits(x.a), from_bits(x.b)}; }
    friend SFF_INLINE F signed_to_float(U x) { return {signed_to_float(x.a), signed_to_float(x.b)}; }
    template <int S>
    friend SFF_INLINE U shift_right(U x) { return {shift_right<S>(x.a), shift_right<S>(x.b)}; }
    template <int S>
    friend SFF_INLINE U shift_right_signed(U x) { return {shift_right_signed<S>(x.a), shift_right_signed<S>(x.b)}; }
};

}  // namespace SFF_ISA
}  // namespace sff
