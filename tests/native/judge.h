// Judges a kernel table: refused exactly where the oracle says, and with a message that names a task; else equal to it in every
// bit on every instruction set.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cpu/float_environment.h"
#include "../../csrc/cpu/smooth.h"
#include "fuzz.h"

namespace judge {

inline std::vector<std::string> isas() {
    std::vector<std::string> found;
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
        try {
            sff::select_kernel(isa);
            found.push_back(isa);
        } catch (const std::invalid_argument&) {  // this machine has none
        }
    }
    return found;
}

[[noreturn]] inline void fail(const std::string& what) {
    std::printf("FAILED: %s\n", what.c_str());
    std::exit(1);
}

// The message of a refusal, empty where the table is accepted.
inline std::string refusal(const std::vector<sff::Task>& tasks) {
    try {
        sff::check_tasks(tasks.data(), static_cast<int64_t>(tasks.size()));
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

using Contents = std::vector<std::vector<char>>;

inline Contents contents(const fuzz::Table& table) {
    Contents all;
    for (const auto& memory : table.memory) all.emplace_back(memory->data(), memory->data() + memory->bytes());
    return all;
}

inline void restore(const fuzz::Table& table, const Contents& all) {
    for (size_t i = 0; i < all.size(); ++i) std::memcpy(table.memory[i]->data(), all[i].data(), all[i].size());
}

// Every instruction set against the oracle.
inline void compare(const fuzz::Table& table, int threads, const std::string& where) {
    const Contents before = contents(table);
    {
        const sff::FloatEnvironment environment;
        for (const sff::Task& task : table.tasks) oracle::run(task);
    }
    const Contents expected = contents(table);
    for (const std::string& isa : isas()) {
        restore(table, before);
        sff::smooth(table.tasks.data(), static_cast<int64_t>(table.tasks.size()), threads, sff::select_kernel(isa));
        if (contents(table) != expected) fail(where + ": " + isa + " differs from the scalar evaluation");
        for (const auto& memory : table.memory)
            if (!memory->lead_is_untouched()) fail(where + ": " + isa + " wrote before its memory");
    }
}

// Whether the kernels accept a table; ends the process where the oracle says otherwise.
inline bool is_accepted(const fuzz::Table& table, const std::string& where) {
    const std::string message = refusal(table.tasks);
    if (message.empty() != oracle::is_valid(table.tasks))
        fail(where + ": " + (message.empty() ? "an invalid table was accepted" : "a valid table was refused: " + message));
    if (!message.empty() && message.rfind("kernel table, task ", 0) != 0) fail(where + ": the refusal names no task: " + message);
    return message.empty();
}

}  // namespace judge
