// Which kernels this machine can run: the one table of instruction sets.
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "smooth.h"

namespace sff {
namespace {

struct Choice {
    const char* isa;
    bool (*supported)();
    const Kernel* (*kernel)();
};

#if defined(__x86_64__)
// Not every clang has the name "f16c" in __builtin_cpu_supports.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
bool always() { return true; }

// Widest first.
const Choice kChoices[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512bf16, kernel_avx512bf16},
    {"avx512", has_avx512, kernel_avx512},
    {"avx2", has_avx2, kernel_avx2},
#endif
    {"baseline", always, kernel_portable},
};

}  // namespace

const Kernel& select_kernel(const std::string& isa) {
    bool known = isa.empty();
    for (const Choice& choice : kChoices) {
        known = known || isa == choice.isa;
        if ((isa.empty() || isa == choice.isa) && choice.supported()) return *choice.kernel();
    }
    throw std::invalid_argument(known ? "this machine has no " + isa
                                      : "unknown instruction set '" + isa + "': expected baseline, avx2 or avx512");
}

}  // namespace sff
