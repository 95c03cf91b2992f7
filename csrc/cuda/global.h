// Addresses that kernels read from tables, as pointers into global memory.
#pragma once

#include <cstdint>

namespace sff {

// A number that the compiler takes for a new one each time.
__device__ __forceinline__ uint64_t not_hoisted(uint64_t x) {
#if defined(__CUDA_ARCH__)
    asm volatile("mov.b64 %0, %0;" : "+l"(x));
#endif
    return x;
}

// Some pointer among a kernel's arguments, and the same as a number. Only what is derived from such a pointer is known to be
// global memory.
struct Origin {
    char* pointer;
    uint64_t address;
};

__device__ __forceinline__ char* at_address(const Origin& origin, uint64_t address) {
    return origin.pointer + static_cast<int64_t>(address - not_hoisted(origin.address));
}

}  // namespace sff
