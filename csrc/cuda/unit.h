// One unit: the elements that a thread does at a time, 4 of them or 8 of 2 bytes; its draws, rounding bits and results.
//
// Nothing here is indexed by a number that is unknown at compile time: a GPU's registers cannot be, and local memory would
// take its place. Shifts within a unit are therefore written as selections. Blocks are numbered by their low counter word:
// the high one is the same all over a run.
#pragma once

#include <type_traits>

#include "../core/distributions.h"
#include "../core/dtypes.h"

namespace sff {
namespace SFF_ISA {

template <class T>
constexpr int kUnit = sizeof(T) == 2 ? 8 : 4;
template <class T>
constexpr int kUnitWords = kUnit<T> * static_cast<int>(sizeof(T)) / 4;  // 32-bit words of a unit: one or two 128-bit accesses
template <int Kind>
constexpr bool kRandom = Kind != kConstant && Kind != kTable;

// Where element 0 of a run stands in a stream: in block `block`, at place `phase` of the block's `1 << Log` elements.
template <int Log>
struct Place {
    uint32_t block;
    int phase;
    explicit SFF_INLINE Place(uint64_t index)
        : block(static_cast<uint32_t>(index >> Log)), phase(static_cast<int>(index & ((1u << Log) - 1))) {}
    SFF_INLINE uint32_t block_of(int element) const { return block + static_cast<uint32_t>((phase + element) >> Log); }
    SFF_INLINE int phase_of(int element) const { return (phase + element) & ((1 << Log) - 1); }
};

// The four draws of a block.
template <int Kind>
SFF_INLINE void draws_of_block(uint32_t block, const PhiloxKey& key, const float (&p)[8], float (&draws)[4]) {
    uint32_t words[1][4];
    philox_blocks<1>(key, block, words);
    block_draws<Kind>(words[0], p, draws);
}

// Moves draws on to those from place `phase` of the first block on; beyond: what follows them.
template <int N>
SFF_INLINE void shift_draws(int phase, const float (&beyond)[3], float (&draws)[N]) {
    float all[N + 3];
    SFF_UNROLL
    for (int i = 0; i < N + 3; ++i) all[i] = i < N ? draws[i % N] : beyond[(i - N + 3) % 3];
    SFF_UNROLL
    for (int i = 0; i < N + 1; ++i) all[i] = (phase & 2) != 0 ? all[i + 2] : all[i];
    SFF_UNROLL
    for (int i = 0; i < N; ++i) draws[i] = (phase & 1) != 0 ? all[i + 1] : all[i];
}

// Moves the eight rounding numbers of a block, two halves a word, on to those from place `phase` on; beyond: the next block.
SFF_INLINE void shift_halves(int phase, const uint32_t (&beyond)[4], uint32_t (&halves)[4]) {
    uint32_t all[8];
    SFF_UNROLL
    for (int i = 0; i < 8; ++i) all[i] = i < 4 ? halves[i % 4] : beyond[i % 4];
    SFF_UNROLL
    for (int i = 0; i < 6; ++i) all[i] = (phase & 4) != 0 ? all[i + 2] : all[i];
    SFF_UNROLL
    for (int i = 0; i < 5; ++i) all[i] = (phase & 2) != 0 ? all[i + 1] : all[i];
    SFF_UNROLL
    for (int i = 0; i < 4; ++i) halves[i] = (phase & 1) != 0 ? (all[i] >> 16) | (all[i + 1] << 16) : all[i];
}

// Rounding numbers of the eight elements from place `phase` of `block` on.
SFF_INLINE void rounding_halves(uint32_t block, int phase, const PhiloxKey& key, uint32_t (&halves)[4]) {
    uint32_t here[1][4];
    philox_blocks<1>(key, block, here);
    SFF_UNROLL
    for (int i = 0; i < 4; ++i) halves[i] = here[0][i];
    if (phase == 0) return;
    uint32_t next[1][4];
    philox_blocks<1>(key, block + 1, next);
    shift_halves(phase, next[0], halves);
}

struct Factors {
    float shrink, perturb;
    double shrink64, perturb64;
};

// With shrink 0 old values are not read: they count as +0.
template <class T>
SFF_INLINE bool reads_old(const Factors& f) {
    return std::is_same<T, double>::value ? f.shrink64 != 0 : f.shrink != 0;
}

template <class T, bool Stochastic>
SFF_INLINE T smoothed(T old, const Factors& f, float draw, uint32_t half) {
    if constexpr (std::is_same<T, double>::value) {
        return interpolated(old, f.shrink64, f.perturb64, draw);
    } else {
        T result;
        const float x = interpolated(old, f.shrink, f.perturb, draw);
        if constexpr (Stochastic) {
            narrow_stochastic(x, half, result);
        } else {
            narrow(x, result);
        }
        return result;
    }
}

template <class T>
SFF_INLINE uint32_t canonical_word(uint32_t word) {
    if constexpr (sizeof(T) == 4) {
        return to_bits(canonical(from_bits(word)));
    } else {
        const T low = canonical(T{static_cast<uint16_t>(word)}), high = canonical(T{static_cast<uint16_t>(word >> 16)});
        return low.bits | static_cast<uint32_t>(high.bits) << 16;
    }
}

// A unit in place, as the words that its vector accesses move; halves: the rounding bits, two a word.
template <class T, bool Stochastic>
SFF_INLINE void smooth_unit(uint32_t (&words)[kUnitWords<T>], const Factors& f, const float (&draws)[kUnit<T>],
                            const uint32_t (&halves)[4]) {
    if constexpr (std::is_same<T, double>::value) {
        SFF_UNROLL
        for (int i = 0; i < 4; ++i) {
            double x;
            memcpy(&x, words + 2 * i, sizeof x);
            x = interpolated(x, f.shrink64, f.perturb64, draws[i]);
            memcpy(words + 2 * i, &x, sizeof x);
        }
    } else {
        bool nan = false;
        SFF_UNROLL
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == 4) {
                const float x = mixed(from_bits(words[i]), f.shrink, f.perturb, draws[i]);
                nan = nan || x != x;
                words[i] = to_bits(x);
            } else {
                const T low = {static_cast<uint16_t>(words[i])}, high = {static_cast<uint16_t>(words[i] >> 16)};
                const float x = mixed(widen(low), f.shrink, f.perturb, draws[2 * i]);
                const float y = mixed(widen(high), f.shrink, f.perturb, draws[2 * i + 1]);
                if constexpr (Stochastic) {
                    T a, b;
                    narrow_stochastic(x, halves[i] & 0xffffu, a);
                    narrow_stochastic(y, halves[i] >> 16, b);
                    words[i] = a.bits | static_cast<uint32_t>(b.bits) << 16;
                } else {
                    nan = nan || x != x || y != y;
                    words[i] = narrow_pair<T>(x, y);
                }
            }
        }
        if (!Stochastic && nan) {
            SFF_UNROLL
            for (int i = 0; i < 4; ++i) words[i] = canonical_word<T>(words[i]);
        }
    }
}

}  // namespace SFF_ISA
}  // namespace sff
