// libFuzzer's target: tables that are read off its bytes. What is invalid must be refused, what is valid must have the oracle's
// bits on every instruction set, in memory of exactly the size that the table names.
#include <cstddef>
#include <cstdint>

#include "fuzz.h"
#include "judge.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
    constexpr int64_t kElements = 400;
    fuzz::Source source(bytes, count);
    fuzz::Table table = fuzz::make(source, kElements);
    for (int broken = 0; broken < 3 && !source.is_used_up(); ++broken) {
        const int64_t index = source.below(static_cast<int64_t>(table.tasks.size()));
        fuzz::break_one_field(source, table.tasks[static_cast<size_t>(index)]);
    }
    if (judge::is_accepted(table, "this input")) judge::compare(table, 1, "this input");
    return 0;
}
