// Random kernel tables: partitions of tensors (mostly valid), boxes thrown at random (mostly overlapping), reversed ones,
// empty ones, boxes of which every field is any number, and single fields broken with extreme values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "memory.h"
#include "oracle.h"

namespace fuzz {

using sff::Task;

// Choices: of a seeded generator, or read off bytes that a coverage-guided fuzzer changes (zeros where they have run out).
class Source {
public:
    explicit Source(uint64_t seed) : engine_(seed) {}
    Source(const uint8_t* bytes, size_t count) : at_(bytes), end_(bytes + count), given_(true) {}
    int64_t below(int64_t n) {
        const int width = n <= 0x100 ? 1 : n <= 0x10000 ? 2 : 8;  // few bytes a choice: what they mean stays in place
        return static_cast<int64_t>((given_ ? read(width) : engine_()) % static_cast<uint64_t>(n));
    }
    int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
    bool one_in(int64_t n) { return below(n) == 0; }
    uint64_t word() { return given_ ? read(8) : engine_(); }
    bool is_used_up() const { return given_ && at_ == end_; }
    template <class T, size_t N>
    T pick(const T (&values)[N]) {
        return values[below(N)];
    }

private:
    uint64_t read(int width) {
        uint64_t value = 0;
        for (int i = 0; i < width && at_ != end_; ++i) value |= static_cast<uint64_t>(*at_++) << (8 * i);
        return value;
    }

    std::mt19937_64 engine_;
    const uint8_t* at_ = nullptr;
    const uint8_t* end_ = nullptr;
    bool given_ = false;
};

// Tables of one run and the memory that they name.
struct Table {
    std::vector<std::unique_ptr<Memory>> memory;  // one a tensor
    std::vector<std::unique_ptr<Memory>> stored;  // fp32 draws
    std::vector<Task> tasks;
};

inline void choose_distribution(Source& s, Task& t) {
    t.distribution = static_cast<int32_t>(s.below(4));
    const float scale = s.pick({0.02f, 1.0f, 300.0f});
    if (t.distribution == sff::kConstant) t.p[0] = s.pick({0.0f, -0.0f, 1.0f, 1e-40f}) * scale;
    if (t.distribution == sff::kUniform) t.p[0] = -scale, t.p[1] = s.pick({0.0f, 2 * scale, 0x1p-99f});
    if (t.distribution == sff::kNormal) t.p[0] = s.pick({0.0f, 0.5f}), t.p[1] = scale;
    if (t.distribution == sff::kTruncNormal) {  // N(0, scale) within two standard deviations, or its tail from 3 on
        const float two[] = {0, scale, -2 * scale, 2 * scale, 0.022750132f, 0.022750132f, 0.95449974f * 0x1p-24f, 0};
        const float tail[] = {0, scale, 3 * scale, 9 * scale, 0.9986501f, 1.1285884e-19f, 0.0013498980f * 0x1p-24f, 1};
        std::memcpy(t.p, s.one_in(2) ? two : tail, sizeof t.p);
    }
}

// Boxes that tile rows x columns: a cut by rows, columns reversed or not.
inline void tile(Source& s, std::vector<Task>& tasks, Task base, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows;) {
        const int64_t count = s.between(1, rows - row), cut = s.between(0, columns);
        for (int part = 0; part < 2; ++part) {
            Task t = base;
            choose_distribution(s, t);
            const int64_t first = part ? cut : 0, width = part ? columns - cut : cut;
            const bool back = s.one_in(4);
            t.rank = 2;
            t.size[0] = count, t.size[1] = width;
            t.memory_strides[0] = columns, t.memory_strides[1] = back ? -1 : 1;
            t.memory_offset = row * columns + first + (back && width > 0 ? width - 1 : 0);
            t.draw_strides[0] = s.pick({int64_t{0}, columns, int64_t{1}}), t.draw_strides[1] = s.pick({1, 1, 1, 0, 5});
            t.draw_offset = s.one_in(8) ? (int64_t{1} << 34) - s.between(0, 300) : s.between(0, 1000);
            t.logical_strides[0] = columns, t.logical_strides[1] = s.pick({1, 1, 3});
            t.logical_offset = s.one_in(8) ? (int64_t{1} << 35) - s.between(0, 300) : s.between(0, 1000);
            tasks.push_back(t);
        }
        row += count;
    }
}

// A box of any strides, inside of its memory or not.
inline Task thrown(Source& s, Task t, int64_t elements) {
    choose_distribution(s, t);
    t.rank = static_cast<int32_t>(s.between(1, sff::kMaxRank));
    for (int d = 0; d < t.rank; ++d) {
        t.size[d] = s.between(s.one_in(12) ? 0 : 1, t.rank < 3 ? 9 : 3);
        t.memory_strides[d] = s.between(-3, 12);
        t.draw_strides[d] = s.between(-1, 4);
        t.logical_strides[d] = s.between(0, 4);
    }
    t.memory_offset = s.between(0, elements);
    t.draw_offset = s.between(0, 60);
    t.logical_offset = s.between(0, 60);
    return t;
}

// A number of any size, half of them small.
inline int64_t any_number(Source& s) { return s.one_in(2) ? static_cast<int64_t>(s.word()) : s.between(-2, 40); }

// A box of which every field is any number; only its memory is its own.
inline Task any_box(Source& s, Task t) {
    choose_distribution(s, t);
    t.rank = static_cast<int32_t>(s.between(-1, sff::kMaxRank + 1));
    for (int d = 0; d < sff::kMaxRank; ++d) {
        t.size[d] = any_number(s), t.memory_strides[d] = any_number(s);
        t.draw_strides[d] = any_number(s), t.logical_strides[d] = any_number(s);
    }
    t.memory_offset = any_number(s), t.draw_offset = any_number(s), t.logical_offset = any_number(s);
    return t;
}

inline void break_one_field(Source& s, Task& t) {
    constexpr int64_t low = std::numeric_limits<int64_t>::min(), high = std::numeric_limits<int64_t>::max();
    const int64_t extreme =
        s.pick({low, high, int64_t{-1}, int64_t{0}, int64_t{1} << 62, int64_t{1} << 60, low + 1, int64_t{1} << 32});
    const int d = static_cast<int>(s.below(sff::kMaxRank));
    const double strange = s.pick({std::nan(""), HUGE_VAL, -HUGE_VAL});
    switch (s.below(16)) {
        case 0:
            t.size[d] = extreme;
            break;
        case 1:
            t.memory_strides[d] = extreme;
            break;
        case 2:
            t.draw_strides[d] = extreme;
            break;
        case 3:
            t.logical_strides[d] = extreme;
            break;
        case 4:
            t.memory_offset = extreme;
            break;
        case 5:
            t.draw_offset = extreme;
            break;
        case 6:
            t.logical_offset = extreme;
            break;
        case 7:
            t.rank = static_cast<int32_t>(s.between(-1, 8));
            break;
        case 8:
            t.dtype = static_cast<int32_t>(s.pick({-1, 4, 1 << 30}));
            break;
        case 9:
            t.distribution = static_cast<int32_t>(s.pick({-1, 5, 1 << 30}));
            break;
        case 10:
            t.rounding = static_cast<int32_t>(s.pick({-1, 2}));
            break;
        case 11:
            (s.one_in(2) ? t.shrink : t.perturb) = strange;
            break;
        case 12:
            t.p[s.below(8)] = static_cast<float>(strange);
            break;
        case 13:
            t.data = s.one_in(2) ? 0 : t.data | 1;  // once more is the same: two steps of a byte would be an element
            break;
        case 14:
            t.memory_elements = s.below(t.memory_elements + 1);
            break;
        default:
            t.distribution = sff::kTable;  // of a null table any number of draws, of a real one never more than it holds
            t.table_elements = s.below(t.table == 0 ? 3 : std::min<int64_t>(2, t.table_elements) + 1);
            break;
    }
}

inline Table make(Source& s, int64_t most_elements) {
    Table table;
    for (int64_t tensor = s.between(0, 3); tensor >= 0; --tensor) {
        const int64_t columns = s.between(1, most_elements > 4096 ? 5000 : 90);
        const int64_t rows = s.between(1, std::max<int64_t>(1, most_elements / columns));
        Task base = {};
        base.dtype = static_cast<int32_t>(s.below(4));
        base.rounding = static_cast<int32_t>(s.below(2));
        base.memory_elements = rows * columns;
        base.seed = s.word(), base.stream = s.word(), base.round_seed = s.word(), base.round_stream = s.word();
        base.shrink = s.pick({0.7, 0.0, 1.0, -0.5}), base.perturb = s.pick({0.3, 0.0, 1.0});
        const int64_t width = oracle::kWidth[base.dtype];
        table.memory.push_back(std::make_unique<Memory>(rows * columns * width, s.below(33) * width));
        Memory& memory = *table.memory.back();
        std::mt19937_64 contents(s.word());
        for (size_t i = 0; i < memory.bytes(); ++i) memory.data()[i] = static_cast<char>(contents());
        base.data = memory.address();
        const int64_t kind = s.below(16);
        if (kind < 11) {
            tile(s, table.tasks, base, rows, columns);
        } else {
            for (int64_t boxes = s.between(1, 3); boxes > 0; --boxes)
                table.tasks.push_back(kind < 15 ? thrown(s, base, rows * columns) : any_box(s, base));
        }
    }
    if (s.one_in(5)) {  // one box reads stored draws, of exactly the size that it needs or one less
        Task& t = table.tasks[static_cast<size_t>(s.below(static_cast<int64_t>(table.tasks.size())))];
        t.distribution = sff::kTable;
        t.draw_offset = s.below(5);
        oracle::Wide last = t.draw_offset;
        for (int d = 0; d < std::min<int>(t.rank, sff::kMaxRank); ++d) {
            last += t.draw_strides[d] > 0 ? (oracle::Wide(t.size[d]) - 1) * t.draw_strides[d] : 0;
            last = std::clamp<oracle::Wide>(last, -1, 100 * most_elements);  // of a box of any size: too few, or none
        }
        t.table_elements = std::max<int64_t>(0, static_cast<int64_t>(last) + (s.one_in(6) ? 0 : 1));
        table.stored.push_back(std::make_unique<Memory>(t.table_elements * 4, s.below(4) * 4));
        t.table = table.stored.back()->address();
        for (int64_t i = 0; i < t.table_elements; ++i) reinterpret_cast<float*>(t.table)[i] = 0.01f * static_cast<float>(i % 97);
    }
    return table;
}

}  // namespace fuzz
