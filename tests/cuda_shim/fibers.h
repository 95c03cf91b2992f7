// Fibers: stacks that one thread of the CPU runs in turn. A switch stays out of the system, which swapcontext calls each time.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

// Puts what a function keeps for its caller on this stack, leaves its end in *from, and goes on with the stack that ends at `to`.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
    .text
    .weak shim_switch
    .hidden shim_switch
    .type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size shim_switch, .-shim_switch
)");

namespace shim {

struct Fiber {
    void* stack = nullptr;

    // Calls entry(), which never returns, at the first switch to it.
    void begin(char* memory, size_t bytes, void (*entry)()) {
        uint64_t* top = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(memory) + bytes) / 16 * 16);
        *--top = 0;  // where entry would return to
        *--top = reinterpret_cast<uintptr_t>(entry);
        for (int i = 0; i < 6; ++i) *--top = 0;
        stack = top;
    }
};
inline void switch_fibers(Fiber& from, Fiber& to) { shim_switch(&from.stack, to.stack); }

}  // namespace shim

#else
#include <ucontext.h>

namespace shim {

struct Fiber {
    ucontext_t context;

    void begin(char* memory, size_t bytes, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = memory;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};
inline void switch_fibers(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

}  // namespace shim
#endif
