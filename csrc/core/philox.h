// Philox4x32-10, the counter-based generator of random stream v1.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// Counter = (block low 32, block high 32, stream low 32, stream high 32), key = the 64-bit seed.
// Within one (seed, stream, block high) three of the four counter words are constant, so that half of rounds 1 and 2
// is computed once (PhiloxKey) and the first product grows by an addition instead of a multiplication.
//
// Lanes have 64 bits, of which a multiplication reads the low half. What need not stand there is not moved there: rounds 1 and
// 2 take one exclusive-or for both halves of the first product, and the last round leaves its words two in a lane.
#pragma once

#include "scalar.h"

namespace sff {
namespace SFF_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct PhiloxKey {
    uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
    uint64_t first;      // for the first product: round 2's c2 is its low half, what round 1's c2 stems from its high half
    uint32_t round2_c0;  // round 2's c0, without its product
    uint32_t round3_c2;  // round 3's c2, without its product
};

// The round keys: all that depends on the seed alone.
SFF_INLINE void philox_schedule(uint64_t seed, PhiloxKey& key) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int r = 0; r < kPhiloxRounds; ++r, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        key.k0[r] = k0;
        key.k1[r] = k1;
    }
}

// The half of rounds 1 and 2 that is the same for all blocks of a stream; needs the round keys.
SFF_INLINE void philox_stream(uint64_t stream, uint32_t block_high, PhiloxKey& key) {
    const uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * c2;
    const uint32_t after1_c0 = static_cast<uint32_t>(p1 >> 32) ^ block_high ^ key.k0[0];
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * after1_c0;
    key.first = static_cast<uint64_t>(c3 ^ key.k1[0]) << 32 | (static_cast<uint32_t>(p0 >> 32) ^ key.k1[1]);
    key.round2_c0 = static_cast<uint32_t>(p1) ^ key.k0[1];
    key.round3_c2 = static_cast<uint32_t>(p0) ^ key.k1[2];
}

SFF_INLINE PhiloxKey philox_key(uint64_t seed, uint64_t stream, uint32_t block_high) {
    PhiloxKey key;
    philox_schedule(seed, key);
    philox_stream(stream, block_high, key);
    return key;
}

// How `philox` returns the four words of a block.
enum PhiloxForm {
    kSeparate,  // the low half of c[j][i] is word i
    kPairs,     // c[j][0] holds word 1 in its low half and word 0 above it, c[j][1] word 3 and word 2
    kJoined,    // c[j][0] holds word 0 in its low half and word 2 above it, c[j][1] word 1 and word 3
};

// On entry c[j][0] holds kPhiloxM0 * (block low 32) as a 64-bit product; on return the words in the form asked for. J
// independent vectors are interleaved to hide the latency of the multiplications.
template <class L, int J, PhiloxForm Form>
SFF_INLINE void philox(typename L::Q (&c)[J][4], const PhiloxKey& key) {
    using Q = typename L::Q;
    const Q m0 = L::q(kPhiloxM0), m1 = L::q(kPhiloxM1);
    {
        const Q first = L::q(key.first), n0 = L::q(key.round2_c0), k0 = L::q(key.k0[2]), n2 = L::q(key.round3_c2);
        SFF_UNROLL
        for (int j = 0; j < J; ++j) {  // rounds 1 to 3
            const Q c2 = exclusive_or(c[j][0], first);
            const Q before = multiply_low_halves(high_half(c2), m1);
            const Q p0 = multiply_low_halves(exclusive_or(high_half(before), n0), m0), p1 = multiply_low_halves(c2, m1);
            c[j][0] = exclusive_or(high_half(p1), before, k0);
            c[j][2] = exclusive_or(high_half_shuffled(p0), n2);
            c[j][1] = p1;
            c[j][3] = p0;
        }
    }
    SFF_UNROLL
    for (int r = 3; r < kPhiloxRounds - 1; ++r) {
        const Q k0 = L::q(key.k0[r]), k1 = L::q(key.k1[r]);
        SFF_UNROLL
        for (int j = 0; j < J; ++j) {
            const Q p0 = multiply_low_halves(c[j][0], m0), p1 = multiply_low_halves(c[j][2], m1);
            c[j][0] = exclusive_or(high_half(p1), c[j][1], k0);
            c[j][2] = exclusive_or(high_half_shuffled(p0), c[j][3], k1);
            c[j][1] = p1;
            c[j][3] = p0;
        }
    }
    const uint64_t last0 = key.k0[kPhiloxRounds - 1], last1 = key.k1[kPhiloxRounds - 1];
    const Q k0 = L::q(Form == kPairs ? last0 << 32 : Form == kJoined ? last0 | last1 << 32 : last0);
    const Q k1 = L::q(Form == kPairs ? last1 << 32 : last1);
    SFF_UNROLL
    for (int j = 0; j < J; ++j) {
        const Q p0 = multiply_low_halves(c[j][0], m0), p1 = multiply_low_halves(c[j][2], m1);
        if constexpr (Form == kPairs) {
            c[j][0] = exclusive_or(p1, to_high_half(c[j][1]), k0);
            c[j][1] = exclusive_or(p0, to_high_half(c[j][3]), k1);
        } else if constexpr (Form == kJoined) {
            c[j][0] = exclusive_or(join_high_halves(p1, p0), join_low_halves(c[j][1], c[j][3]), k0);
            c[j][1] = join_low_halves(p1, p0);
        } else {
            c[j][0] = exclusive_or(high_half(p1), c[j][1], k0);
            c[j][2] = exclusive_or(high_half_shuffled(p0), c[j][3], k1);
            c[j][1] = p1;
            c[j][3] = p0;
        }
    }
}

// The words of J consecutive blocks whose high counter word is the key's.
template <int J>
SFF_INLINE void philox_blocks(const PhiloxKey& key, uint32_t block_low, uint32_t (&words)[J][4]) {
    uint64_t c[J][4];
    SFF_UNROLL
    for (int j = 0; j < J; ++j) c[j][0] = multiply_low_halves(block_low + static_cast<uint32_t>(j), kPhiloxM0);
    philox<Scalar, J, kSeparate>(c, key);
    SFF_UNROLL
    for (int j = 0; j < J; ++j) {
        SFF_UNROLL
        for (int w = 0; w < 4; ++w) words[j][w] = static_cast<uint32_t>(c[j][w]);
    }
}

// The four words of one block.
SFF_INLINE void philox_block(uint64_t seed, uint64_t stream, uint64_t block, uint32_t (&words)[4]) {
    uint32_t all[1][4];
    philox_blocks<1>(philox_key(seed, stream, static_cast<uint32_t>(block >> 32)), static_cast<uint32_t>(block), all);
    for (int w = 0; w < 4; ++w) words[w] = all[0][w];
}

}  // namespace SFF_ISA
}  // namespace sff
