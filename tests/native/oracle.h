// What the kernels must do, said as plainly as possible: which tables are valid, element by element, and what a valid one
// does, one element at a time. Shares only the formulas of csrc/core with the kernels, compiled for no instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "../../csrc/core/distributions.h"
#include "../../csrc/core/dtypes.h"
#include "../../csrc/core/task.h"

namespace oracle {

using namespace sff;
using namespace sff::SFF_ISA;
using Wide = __int128;

constexpr int64_t kWidth[] = {4, 2, 2, 8};

struct Element {
    Wide memory, draw, logical;
};

inline bool codes_are_known(const Task& t) {
    return t.rank >= 1 && t.rank <= kMaxRank && t.dtype >= 0 && t.dtype <= 3 && t.distribution >= 0 && t.distribution <= 4 &&
           (t.rounding == 0 || t.rounding == 1);
}

// Sizes multiplied from the first on; -1 where one is negative or the product passes 2^60.
inline Wide product(const Task& t) {
    Wide n = 1;
    for (int d = 0; d < t.rank; ++d) {
        if (t.size[d] < 0) return -1;
        n *= t.size[d];
        if (n > (Wide(1) << 60)) return -1;
    }
    return n;
}

inline Element element(const Task& t, Wide i) {
    Element e = {t.memory_offset, t.draw_offset, t.logical_offset};
    for (int d = t.rank - 1; d >= 0; --d) {
        const Wide m = i % t.size[d];
        i /= t.size[d];
        e.memory += m * t.memory_strides[d];
        e.draw += m * t.draw_strides[d];
        e.logical += m * t.logical_strides[d];
    }
    return e;
}

inline bool numbers_are_finite(const Task& t) {
    if (!std::isfinite(t.shrink) || !std::isfinite(t.perturb)) return false;
    for (float p : t.p)
        if (!std::isfinite(p)) return false;
    return !(t.distribution == kUniform && t.p[1] != 0 && std::fabs(t.p[1]) < 0x1p-100f);
}

// Valid on its own and together with what `written` (addresses of bytes) holds of the tasks before.
inline bool accept(const Task& t, std::set<uint64_t>& written) {
    if (!codes_are_known(t) || !numbers_are_finite(t)) return false;
    const Wide n = product(t);
    if (n <= 0) return n == 0;
    const int64_t width = kWidth[t.dtype];
    if (t.data == 0 || t.data % static_cast<uint64_t>(width) != 0) return false;
    if (n > t.memory_elements) return false;  // more elements than places: outside, or one of them twice
    if (t.distribution == kTable && (t.table == 0 || t.table % 4 != 0)) return false;
    const Wide limit = Wide(1) << 62;
    for (Wide i = 0; i < n; ++i) {
        const Element e = element(t, i);
        if (e.memory < 0 || e.memory >= t.memory_elements) return false;
        if (e.draw < 0 || e.draw > limit || e.logical < 0 || e.logical > limit) return false;
        if (t.distribution == kTable && e.draw >= t.table_elements) return false;
        if (!written.insert(t.data + static_cast<uint64_t>(e.memory) * static_cast<uint64_t>(width)).second) return false;
    }
    return true;
}

inline bool is_valid(const std::vector<Task>& tasks) {
    std::set<uint64_t> written;
    for (const Task& t : tasks)
        if (!accept(t, written)) return false;
    return true;
}

inline float draw(const Task& t, uint64_t index) {
    if (t.distribution == kConstant) return t.p[0];
    if (t.distribution == kTable) return reinterpret_cast<const float*>(t.table)[index];
    float draws[4];
    draw_block(t, index >> 2, draws);
    return draws[index & 3];
}

template <class T>
void apply(const Task& t, T* p, float r, uint64_t logical) {
    const float x = interpolated(*p, static_cast<float>(t.shrink), static_cast<float>(t.perturb), r);
    if constexpr (!std::is_same<T, float>::value) {
        if (t.rounding == kStochastic) {
            uint32_t words[4];
            philox_block(t.round_seed, t.round_stream, logical >> 3, words);
            return narrow_stochastic(x, (words[(logical >> 1) & 3] >> (16 * (logical & 1))) & 0xffffu, *p);
        }
    }
    narrow(x, *p);
}

inline void run(const Task& t) {
    const Wide n = product(t);
    for (Wide i = 0; i < n; ++i) {
        const Element e = element(t, i);
        const float r = draw(t, static_cast<uint64_t>(e.draw));
        const auto logical = static_cast<uint64_t>(e.logical);
        char* at = reinterpret_cast<char*>(t.data) + static_cast<int64_t>(e.memory) * kWidth[t.dtype];
        switch (t.dtype) {
            case kFloat32:
                apply(t, reinterpret_cast<float*>(at), r, logical);
                break;
            case kBFloat16:
                apply(t, reinterpret_cast<BFloat16*>(at), r, logical);
                break;
            case kFloat16:
                apply(t, reinterpret_cast<Float16*>(at), r, logical);
                break;
            default: {
                double* p = reinterpret_cast<double*>(at);
                *p = interpolated(*p, t.shrink, t.perturb, r);
            }
        }
    }
}

}  // namespace oracle
