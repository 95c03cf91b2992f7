// The loops around the formulas: units, runs and boxes, for any lane type.
//
// A unit is what one vector of Philox blocks yields: 2 * lanes consecutive draws. Vector lane 2j holds block j and lane
// 2j + 1 block lanes/4 + j, so that joining the words and interleaving within 128-bit lanes gives two vectors in natural
// order without a shuffle across lanes.
#pragma once

#include <type_traits>

#include "../core/distributions.h"
#include "../core/dtypes.h"
#include "kernel.h"
#include "lanes_together.h"

namespace sff {
namespace SFF_ISA {

constexpr int64_t kStrip = 1536;         // elements whose rounding bits are drawn at once: whole groups of interleaved units
constexpr int kPrefetchBytes = 2048;     // measured: without it the hardware prefetcher stops at every page
constexpr int64_t kHeadElements = 4096;  // runs from twice this length on have their first lines prefetched

template <class L>
struct Coefficients {
    typename L::F shrink, perturb;
    double shrink64, perturb64;
    explicit SFF_INLINE Coefficients(const Task& t)
        : shrink(L::f(static_cast<float>(t.shrink))),
          perturb(L::f(static_cast<float>(t.perturb))),
          shrink64(t.shrink),
          perturb64(t.perturb) {}
};

// Types whose NaNs stay NaNs when they are narrowed: they are stored as they come and looked after a group at a time.
template <class T>
constexpr bool kNansLater = std::is_same<T, float>::value || std::is_same<T, Float16>::value;

template <class T>
__attribute__((noinline, cold)) void make_nans_canonical(T* p, int n) {
    for (int i = 0; i < n; ++i) p[i] = canonical(p[i]);
}

template <class L, class T>
SFF_INLINE void apply_pair(T* p, typename L::F first, typename L::F second, const Coefficients<L>& c, typename L::NanNote& nans) {
    if constexpr (std::is_same<T, double>::value) {
        L::interpolate(p, c.shrink64, c.perturb64, first);
        L::interpolate(p + L::lanes, c.shrink64, c.perturb64, second);
    } else {
        const auto a = fused(c.shrink, L::load(p), c.perturb * first);
        const auto b = fused(c.shrink, L::load(p + L::lanes), c.perturb * second);
        if constexpr (kNansLater<T>) {
            nans.add(a, b);
            L::store(p, a);
            L::store(p + L::lanes, b);
        } else {
            L::store_pair(p, a, b);
        }
    }
}

template <class L, class T>
SFF_INLINE void apply_pair_stochastic(T* p, typename L::F first, typename L::F second, const Coefficients<L>& c,
                                      const uint16_t* h) {
    L::store_pair_stochastic(p, fused(c.shrink, L::load(p), c.perturb * first),
                             fused(c.shrink, L::load(p + L::lanes), c.perturb * second), h);
}

// The first products of Philox for the unit at `block`, and what is added to them `units` units further on. They are exact as
// long as the low half of `block` does not wrap.
template <class L>
SFF_INLINE typename L::Q products_at(uint64_t block) {
    return L::q(static_cast<uint64_t>(static_cast<uint32_t>(block)) * kPhiloxM0) + L::first_products(kPhiloxM0);
}

template <class L>
SFF_INLINE typename L::Q products_step(int64_t units) {
    return L::q(static_cast<uint64_t>(units) * L::blocks * kPhiloxM0);
}

// The words of J units in two halves of consecutive ones, the second of which begins with the products `second`.
template <class L, int J, PhiloxForm Form>
SFF_INLINE void unit_words(typename L::Q first, typename L::Q second, const PhiloxKey& key, typename L::Q (&c)[J][4]) {
    constexpr int half = (J + 1) / 2;
    SFF_UNROLL
    for (int j = 0; j < J; ++j) c[j][0] = (j < half ? first : second) + products_step<L>(j % half);
    philox<L, J, Form>(c, key);
}

// The form of the words that a distribution takes.
constexpr PhiloxForm form_of(int kind) { return kind == kNormal ? kJoined : kPairs; }

// The draws of N units from their words, two vectors each.
template <class L, int Kind, int N>
SFF_INLINE void unit_draws(const typename L::Q (*w)[4], const Task& t, typename L::F (&draws)[N][2]) {
    if constexpr (Kind == kNormal) {
        using Units = Together<L, N>;
        typename Units::U w0, w1;
        typename Units::F even, odd;
        SFF_UNROLL
        for (int j = 0; j < N; ++j) {
            w0.v[j] = both_halves(w[j][0]);
            w1.v[j] = both_halves(w[j][1]);
        }
        box_muller<Units>(w0, w1, even, odd);
        const auto mean = Units::f(t.p[0]), std = Units::f(t.p[1]);
        even = fused(std, even, mean);
        odd = fused(std, odd, mean);
        SFF_UNROLL
        for (int j = 0; j < N; ++j) interleave_floats(even.v[j], odd.v[j], draws[j][0], draws[j][1]);
    } else {
        SFF_UNROLL
        for (int j = 0; j < N; ++j) {
            typename Together<L, 2>::U words;
            interleave_pairs(w[j][0], w[j][1], words.v[0], words.v[1]);
            if constexpr (Kind == kUniform) {
                const auto low = L::f(t.p[0]), width = L::f(t.p[1] * 5.9604644775390625e-8f);
                draws[j][0] = uniform<L>(words.v[0], low, width);
                draws[j][1] = uniform<L>(words.v[1], low, width);
            } else {
                const auto both = truncated_normal<Together<L, 2>, Kind == kTruncNormalTail>(words, t.p);
                draws[j][0] = both.v[0];
                draws[j][1] = both.v[1];
            }
        }
    }
}

// Prefetches the lines of n elements, `ahead` bytes further on. Any address may be prefetched.
template <class L, class T>
SFF_INLINE void prefetch_lines(const T* p, int64_t n, int ahead) {
    for (int64_t byte = 0; byte < static_cast<int64_t>(sizeof(T)) * n; byte += 64)
        L::prefetch_far(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(ahead + byte));
}

// Moves a pointer that exists only for some kinds of run.
template <bool Exists, class P>
SFF_INLINE P* advance(P* p, int64_t n) {
    return Exists ? p + n : p;
}

// J whole units, half of them at p and half of them `apart` elements further on. The first draws of both halves are those of
// the blocks with the products `first` and `second`; table and h point to the draws and rounding bits of p where the kind of
// run has them.
template <class L, class T, int Kind, int J, bool Stochastic>
SFF_INLINE void units(T* p, int64_t apart, typename L::Q first, typename L::Q second, const PhiloxKey& key, const float* table,
                      const uint16_t* h, const Task& t, const Coefficients<L>& c) {
    constexpr int width = 2 * L::lanes, half = (J + 1) / 2;
    typename L::Q w[J][4];
    if constexpr (Kind != kConstant && Kind != kTable) unit_words<L, J, form_of(Kind)>(first, second, key, w);
    constexpr int step = J % L::together == 0 ? L::together : 1;
    typename L::F draws[step][2];
    typename L::NanNote nans;
    SFF_UNROLL
    for (int j = 0; j < J; ++j) {
        const int64_t place = j % half * width + (j < half ? 0 : apart);
        T* q = p + place;
        if constexpr (Kind != kConstant && Kind != kTable) {
            if (j % step == 0) unit_draws<L, Kind, step>(w + j, t, draws);
        }
        typename L::F &low = draws[j % step][0], &high = draws[j % step][1];
        if constexpr (Kind == kConstant) {
            low = high = L::f(t.p[0]);
        } else if constexpr (Kind == kTable) {
            low = L::load_table(table + place);
            high = L::load_table(table + place + L::lanes);
        }
        prefetch_lines<L>(q, width, kPrefetchBytes);
        if constexpr (Stochastic) {
            apply_pair_stochastic<L>(q, low, high, c, h + place);
        } else {
            apply_pair<L>(q, low, high, c, nans);
        }
    }
    if constexpr (kNansLater<T> && !Stochastic) {
        if (__builtin_expect(nans.any(), 0)) {
            make_nans_canonical(p, half * width);
            if (J > half) make_nans_canonical(p + apart, (J - half) * width);
        }
    }
}

// `count` elements at p that are draws skip, skip + 1, ... of the unit at `block`: a whole unit on a copy, so that ends and
// middle run the same code.
template <class L, class T, int Kind, bool Stochastic>
__attribute__((noinline)) void partial_unit(T* p, int skip, int count, uint64_t block, const float* table, const uint16_t* h,
                                            const Task& t) {
    constexpr int width = 2 * L::lanes;
    T values[width] = {};
    float draws[width] = {};
    uint16_t halves[width] = {};
    memcpy(values + skip, p, sizeof(T) * static_cast<size_t>(count));
    if (Kind == kTable) memcpy(draws + skip, table, sizeof(float) * static_cast<size_t>(count));
    if (Stochastic) memcpy(halves + skip, h, sizeof(uint16_t) * static_cast<size_t>(count));
    const PhiloxKey key = philox_key(t.seed, t.stream, static_cast<uint32_t>(block >> 32));
    const auto products = products_at<L>(block);
    units<L, T, Kind, 1, Stochastic>(values, 0, products, products, key, draws, halves, t, Coefficients<L>(t));
    memcpy(p, values + skip, sizeof(T) * static_cast<size_t>(count));
}

// n elements at p, contiguous in memory and in the draw; h: their rounding bits.
template <class L, class T, int Kind, bool Stochastic>
void draw_run(T* p, int64_t n, uint64_t draw, const uint16_t* h, const Task& task) {
    constexpr int width = 2 * L::lanes, many = L::interleave, each = (many + 1) / 2;
    constexpr bool tabled = Kind == kTable, random = Kind != kConstant && !tabled;
    const Task t = task;  // a copy that no store through p can change, so that its fields stay in registers
    const Coefficients<L> c(t);
    const float* table = tabled ? reinterpret_cast<const float*>(t.table) + draw : nullptr;
    while (n > 0) {
        uint64_t block = draw >> 2;
        const PhiloxKey key = philox_key(t.seed, t.stream, static_cast<uint32_t>(block >> 32));
        // The low counter word must not wrap inside this part.
        const uint64_t until_wrap = ((block | 0xffffffffull) + 1) * 4 - draw;
        const int64_t end = random && until_wrap < static_cast<uint64_t>(n) ? static_cast<int64_t>(until_wrap) : n;
        const int skip = random ? static_cast<int>(draw & 3) : 0;
        int64_t i = 0;
        if (skip != 0) {  // up to the next block, or all of it where one unit holds all
            i = end <= width - skip ? end : 4 - skip;
            partial_unit<L, T, Kind, Stochastic>(p, skip, static_cast<int>(i), block, table, h, task);
            ++block;
        }
        const int64_t begin = i;
        typename L::Q products = products_at<L>(block);
        // Two streams: the first and the second half of all whole turns, side by side.
        const int64_t apart = many == 1 ? 0 : (end - i) / (many * width) * (each * width);
        const auto step_apart = products_step<L>(apart / width);
        if (apart > kHeadElements) {
            prefetch_lines<L>(p + i, kPrefetchBytes / sizeof(T), 0);
            prefetch_lines<L>(p + i + apart, kPrefetchBytes / sizeof(T), 0);
        }
        for (const int64_t stop = i + apart; i < stop; i += each * width, products = products + products_step<L>(each))
            units<L, T, Kind, many, Stochastic>(p + i, apart, products, products + step_apart, key, advance<tabled>(table, i),
                                                advance<Stochastic>(h, i), t, c);
        i += apart;
        products = products + step_apart;
        for (; i + width <= end; i += width, products = products + products_step<L>(1))
            units<L, T, Kind, 1, Stochastic>(p + i, 0, products, products, key, advance<tabled>(table, i),
                                             advance<Stochastic>(h, i), t, c);
        if (i < end)
            partial_unit<L, T, Kind, Stochastic>(p + i, 0, static_cast<int>(end - i),
                                                 block + static_cast<uint64_t>(i - begin) / 4, advance<tabled>(table, i),
                                                 advance<Stochastic>(h, i), task);
        p += end;
        h = advance<Stochastic>(h, end);
        table = advance<tabled>(table, end);
        draw += static_cast<uint64_t>(end);
        n -= end;
    }
}

// The words of J units, in order.
template <class L, int J>
SFF_INLINE void store_unit_words(typename L::Q products, const PhiloxKey& key, uint32_t* out) {
    typename L::Q c[J][4];
    unit_words<L, J, kPairs>(products, products + products_step<L>((J + 1) / 2), key, c);
    SFF_UNROLL
    for (int j = 0; j < J; ++j) {
        typename L::U first, second;
        interleave_pairs(c[j][0], c[j][1], first, second);
        store_words(out + 2 * j * L::lanes, first);
        store_words(out + (2 * j + 1) * L::lanes, second);
    }
}

// Rounding bits of elements [index, index + n): 16-bit half i mod 8 of block i div 8. Returns the place of the first.
// `words` has room for a unit more than that.
template <class L>
__attribute__((noinline)) const uint16_t* rounding_bits(const Task& t, uint64_t index, int64_t n, uint32_t* words) {
    constexpr int many = L::interleave;
    uint64_t block = index >> 3;
    const int skip = static_cast<int>(index & 7);
    int64_t left = (n + skip + 7) / 8;  // blocks
    const bool wraps = (block | 0xffffffffull) - block < static_cast<uint64_t>(left) + L::blocks;
    const PhiloxKey key = philox_key(t.round_seed, t.round_stream, static_cast<uint32_t>(block >> 32));
    uint32_t* out = words;
    if (wraps) {  // once in 2^35 elements
        for (; left > 0; --left, ++block, out += 4) {
            uint32_t w[4];
            philox_block(t.round_seed, t.round_stream, block, w);
            memcpy(out, w, sizeof w);
        }
    }
    typename L::Q products = products_at<L>(block);
    for (; left > (many - 1) * L::blocks; left -= many * L::blocks, out += 2 * many * L::lanes) {
        store_unit_words<L, many>(products, key, out);
        products = products + products_step<L>(many);
    }
    for (; left > 0; left -= L::blocks, out += 2 * L::lanes) {
        store_unit_words<L, 1>(products, key, out);
        products = products + products_step<L>(1);
    }
    return reinterpret_cast<const uint16_t*>(words) + skip;
}

template <class L, class T, int Kind>
void run_kind(T* p, int64_t n, uint64_t draw, uint64_t logical, const Task& t) {
    if constexpr (std::is_same<T, BFloat16>::value || std::is_same<T, Float16>::value) {
        if (t.rounding == kStochastic) {
            uint32_t words[(kStrip + 8) / 2 + 2 * L::lanes];
            for (int64_t i = 0; i < n; i += kStrip) {
                const int64_t count = n - i < kStrip ? n - i : kStrip;
                const uint16_t* h = rounding_bits<L>(t, logical + static_cast<uint64_t>(i), count, words);
                draw_run<L, T, Kind, true>(p + i, count, draw + static_cast<uint64_t>(i), h, t);
            }
            return;
        }
    }
    draw_run<L, T, Kind, false>(p, n, draw, nullptr, t);
}

template <class L, class T>
void run_contiguous(T* p, int64_t n, uint64_t draw, uint64_t logical, const Task& t) {
    if (t.shrink == 0) memset(static_cast<void*>(p), 0, sizeof(T) * static_cast<size_t>(n));
    switch (t.distribution) {
        case kConstant:
            return run_kind<L, T, kConstant>(p, n, draw, logical, t);
        case kUniform:
            return run_kind<L, T, kUniform>(p, n, draw, logical, t);
        case kNormal:
            return run_kind<L, T, kNormal>(p, n, draw, logical, t);
        case kTable:
            return run_kind<L, T, kTable>(p, n, draw, logical, t);
        default:
            return t.p[7] != 0 ? run_kind<L, T, kTruncNormalTail>(p, n, draw, logical, t)
                               : run_kind<L, T, kTruncNormal>(p, n, draw, logical, t);
    }
}

// Elements whose neighbours lie apart in memory or in the draw, one by one; blocks are kept while they serve.
template <class T>
void run_strided(T* p, int64_t memory_stride, uint64_t draw, int64_t draw_stride, uint64_t logical, int64_t logical_stride,
                 int64_t n, const Task& t) {
    float draws[4] = {};
    uint32_t words[4] = {};
    uint64_t have_block = ~0ull, have_round = ~0ull;
    for (int64_t i = 0; i < n;
         ++i, draw += static_cast<uint64_t>(draw_stride), logical += static_cast<uint64_t>(logical_stride)) {
        T& element = p[i * memory_stride];  // no pointer steps past the last one: a stride may be huge where n is 1
        float r;
        if (t.distribution == kConstant) {
            r = t.p[0];
        } else if (t.distribution == kTable) {
            r = reinterpret_cast<const float*>(t.table)[draw];
        } else {
            if ((draw >> 2) != have_block) draw_block(t, have_block = draw >> 2, draws);
            r = draws[draw & 3];
        }
        if constexpr (std::is_same<T, double>::value) {
            element = interpolated(element, t.shrink, t.perturb, r);
        } else {
            const float x = interpolated(element, static_cast<float>(t.shrink), static_cast<float>(t.perturb), r);
            if constexpr (!std::is_same<T, float>::value) {
                if (t.rounding == kStochastic) {
                    if ((logical >> 3) != have_round)
                        philox_block(t.round_seed, t.round_stream, have_round = logical >> 3, words);
                    narrow_stochastic(x, (words[(logical >> 1) & 3] >> (16 * (logical & 1))) & 0xffffu, element);
                    continue;
                }
            }
            narrow(x, element);
        }
    }
}

template <class L, class T>
void run_box(const Task& t, int64_t begin, int64_t end) {
    const int last = t.rank - 1;
    const int64_t inner = t.size[last];
    T* data = reinterpret_cast<T*>(t.data);
    while (begin < end) {
        int64_t row = begin / inner;
        const int64_t column = begin % inner;
        const int64_t count = inner - column < end - begin ? inner - column : end - begin;
        int64_t memory = t.memory_offset + column * t.memory_strides[last];
        int64_t draw = t.draw_offset + column * t.draw_strides[last];
        int64_t logical = t.logical_offset + column * t.logical_strides[last];
        for (int d = last - 1; d >= 0; --d) {
            const int64_t m = row % t.size[d];
            row /= t.size[d];
            memory += m * t.memory_strides[d];
            draw += m * t.draw_strides[d];
            logical += m * t.logical_strides[d];
        }
        const bool dense_draw = t.draw_strides[last] == 1 || t.distribution == kConstant;
        const bool dense_logical = t.logical_strides[last] == 1 || t.rounding == kNearest;
        if (t.memory_strides[last] == 1 && dense_draw && dense_logical) {
            run_contiguous<L, T>(data + memory, count, static_cast<uint64_t>(draw), static_cast<uint64_t>(logical), t);
        } else {
            run_strided<T>(data + memory, t.memory_strides[last], static_cast<uint64_t>(draw), t.draw_strides[last],
                           static_cast<uint64_t>(logical), t.logical_strides[last], count, t);
        }
        begin += count;
    }
}

template <class L>
void run_task(const Task& t, int64_t begin, int64_t end) {
    switch (t.dtype) {
        case kFloat32:
            return run_box<L, float>(t, begin, end);
        case kBFloat16:
            return run_box<L, BFloat16>(t, begin, end);
        case kFloat16:
            return run_box<L, Float16>(t, begin, end);
        default:
            return run_box<L, double>(t, begin, end);
    }
}

template <class L>
void philox_words(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint32_t* words) {
    for (; count > 0; ++block, --count, words += 4) {
        if (count >= L::blocks && static_cast<uint32_t>(block) <= 0xffffffffu - L::blocks) {
            const PhiloxKey key = philox_key(seed, stream, static_cast<uint32_t>(block >> 32));
            store_unit_words<L, 1>(products_at<L>(block), key, words);
            block += L::blocks - 1;
            count -= L::blocks - 1;
            words += 4 * (L::blocks - 1);
        } else {
            uint32_t w[4];
            philox_block(seed, stream, block, w);
            memcpy(words, w, sizeof w);
        }
    }
}

template <class L>
void transform(const Task& t, const uint32_t* words, int64_t count, float* draws) {
    for (int64_t i = 0; i < count; i += 2 * L::lanes) {
        uint32_t in[2 * L::lanes] = {};
        float out[2 * L::lanes];
        const int n = static_cast<int>(count - i < 2 * L::lanes ? count - i : 2 * L::lanes);
        memcpy(in, words + i, sizeof(uint32_t) * static_cast<size_t>(n));
        typename L::U a[2];
        typename L::F r[2];
        if (t.distribution == kNormal) {  // lanes: first words of all pairs, then second words
            uint32_t split[2 * L::lanes];
            for (int j = 0; j < L::lanes; ++j) {
                split[j] = in[2 * j];
                split[L::lanes + j] = in[2 * j + 1];
            }
            memcpy(a, split, sizeof a);
            box_muller<L>(a[0], a[1], r[0], r[1]);
            float joined[2 * L::lanes];
            memcpy(joined, r, sizeof r);
            for (int j = 0; j < L::lanes; ++j) {
                out[2 * j] = fused(t.p[1], joined[j], t.p[0]);
                out[2 * j + 1] = fused(t.p[1], joined[L::lanes + j], t.p[0]);
            }
        } else {
            memcpy(a, in, sizeof a);
            for (int j = 0; j < 2; ++j)
                r[j] = t.distribution == kUniform ? uniform<L>(a[j], L::f(t.p[0]), L::f(t.p[1] * 5.9604644775390625e-8f))
                                                  : truncated_normal<L, true>(a[j], t.p);
            memcpy(out, r, sizeof r);
        }
        memcpy(draws + i, out, sizeof(float) * static_cast<size_t>(n));
    }
}

}  // namespace SFF_ISA
}  // namespace sff
