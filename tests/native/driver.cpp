// The native core without Python: for sanitizers and for other architectures under an emulator.
//
//   driver isas                             the instruction sets that run here
//   driver fuzz SEED TABLES ELEMENTS THREADS  random tables: refused exactly where tests/native/oracle.h says, else equal to it
//   driver together SEED                    several callers at once, several threads each, on memory of their own
//   driver vectors FILE                     recorded cases (tests/driver.py writes them): the same bits on every set
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "../../csrc/cpu/smooth.h"
#include "fuzz.h"
#include "judge.h"

namespace {

using namespace judge;

int fuzz_tables(uint64_t seed, int64_t tables, int64_t elements, int threads) {
    int64_t valid = 0, refused = 0, boxes = 0;
    for (int64_t k = 0; k < tables; ++k) {
        const std::string where = "seed " + std::to_string(seed) + ", table " + std::to_string(k);
        fuzz::Source source(seed * 1000003 + static_cast<uint64_t>(k));
        fuzz::Table table = fuzz::make(source, elements);
        if (source.one_in(3)) {
            auto& task = table.tasks[static_cast<size_t>(source.below(static_cast<int64_t>(table.tasks.size())))];
            fuzz::break_one_field(source, task);
        }
        if (!is_accepted(table, where)) {
            ++refused;
            continue;
        }
        compare(table, threads, where);
        boxes += static_cast<int64_t>(table.tasks.size());
        ++valid;
    }
    std::printf("valid %lld refused %lld boxes %lld\n", static_cast<long long>(valid), static_cast<long long>(refused),
                static_cast<long long>(boxes));
    return 0;
}

int together(uint64_t seed) {
    std::vector<std::thread> callers;
    for (uint64_t c = 0; c < 3; ++c)
        callers.emplace_back([seed, c] {
            fuzz::Source source(seed + c);
            for (int turn = 0; turn < 3; ++turn) {
                fuzz::Table table = fuzz::make(source, 400000);
                if (refusal(table.tasks).empty()) compare(table, 3, "caller " + std::to_string(c));
            }
        });
    for (auto& caller : callers) caller.join();
    std::printf("done\n");
    return 0;
}

template <class T>
std::vector<T> read(std::ifstream& file, uint64_t count) {
    std::vector<T> values(count);
    if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(T))))
        fail("the file ends early");
    return values;
}

void smooth_case(std::ifstream& file, const sff::Kernel& kernel, const std::string& where) {
    sff::Task task = read<sff::Task>(file, 1)[0];
    const uint64_t bytes = read<uint64_t>(file, 1)[0];
    const auto before = read<char>(file, bytes), after = read<char>(file, bytes);
    const Memory memory(bytes, 0);
    std::memcpy(memory.data(), before.data(), bytes);
    task.data = memory.address();
    sff::check_tasks(&task, 1);
    sff::smooth(&task, 1, 2, kernel);
    if (std::memcmp(memory.data(), after.data(), bytes) != 0) fail(where + " differs from the recorded bits");
}

void philox_case(std::ifstream& file, const sff::Kernel& kernel, const std::string& where) {
    const auto at = read<uint64_t>(file, 4);  // seed, stream, block, count
    const auto expected = read<uint32_t>(file, 4 * at[3]);
    std::vector<uint32_t> words(expected.size());
    kernel.philox_words(at[0], at[1], at[2], static_cast<int64_t>(at[3]), words.data());
    if (words != expected) fail(where + ": Philox differs from the recorded words");
}

void transform_case(std::ifstream& file, const sff::Kernel& kernel, const std::string& where) {
    const sff::Task task = read<sff::Task>(file, 1)[0];
    const uint64_t count = read<uint64_t>(file, 1)[0];
    const auto words = read<uint32_t>(file, count);
    const auto expected = read<float>(file, count);
    std::vector<float> draws(count);
    const sff::FloatEnvironment environment;
    kernel.transform(task, words.data(), static_cast<int64_t>(count), draws.data());
    if (std::memcmp(draws.data(), expected.data(), count * sizeof(float)) != 0)
        fail(where + ": draws differ from the recorded ones");
}

int vectors(const std::string& path) {
    int64_t cases = 0;
    for (const std::string& isa : isas()) {
        std::ifstream file(path, std::ios::binary);
        if (!file) fail("cannot open " + path);
        const sff::Kernel& kernel = sff::select_kernel(isa);
        for (cases = 0; file.peek() != EOF; ++cases) {
            const std::string where = isa + ", case " + std::to_string(cases);
            switch (read<uint64_t>(file, 1)[0]) {
                case 0:
                    smooth_case(file, kernel, where);
                    break;
                case 1:
                    philox_case(file, kernel, where);
                    break;
                case 2:
                    transform_case(file, kernel, where);
                    break;
                default:
                    fail(where + ": unknown kind");
            }
        }
    }
    std::printf("cases %lld\n", static_cast<long long>(cases));
    return 0;
}

}  // namespace

int main(int count, char** given) {
    const std::vector<std::string> a(given + 1, given + count);
    if (a.size() == 1 && a[0] == "isas") {
        for (const std::string& isa : isas()) std::printf("%s\n", isa.c_str());
        return 0;
    }
    if (a.size() == 5 && a[0] == "fuzz")
        return fuzz_tables(std::stoull(a[1]), std::stoll(a[2]), std::stoll(a[3]), std::stoi(a[4]));
    if (a.size() == 2 && a[0] == "together") return together(std::stoull(a[1]));
    if (a.size() == 2 && a[0] == "vectors") return vectors(a[1]);
    std::fprintf(stderr, "usage: driver isas | fuzz SEED TABLES ELEMENTS THREADS | together SEED | vectors FILE\n");
    return 2;
}
