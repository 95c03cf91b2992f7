// Warps for the shim: each thread is a fiber that runs until its warp exchanges values, and on when all 32 are there.
//
// Threads run to an exchange one after the other, in order. A warp of which some threads ended or never came while others
// wait would hang on a GPU: here it ends the program with a message.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "fibers.h"

namespace shim {

constexpr int kLanes = 32;
constexpr size_t kStack = 1 << 20;
constexpr uint64_t kCanary = 0x5afe57acc5afe57aull;  // at the far end of every stack

struct Warp {
    Fiber scheduler, lanes[kLanes];
    std::unique_ptr<char[]> stacks{new char[kLanes * kStack]};
    uint64_t values[2][kLanes];  // in turn: a lane may be at its next exchange before all have read this one
    int turn[kLanes];
    bool ended[kLanes];
    int current;
    void (*call)(const void*);
    const void* thread;
};
inline thread_local Warp warp;

inline void enter() {
    warp.call(warp.thread);
    warp.ended[warp.current] = true;
    switch_fibers(warp.lanes[warp.current], warp.scheduler);
}

template <class Thread>
void run_block(unsigned threads, const Thread& thread) {
    if (threads % kLanes != 0) {
        std::fprintf(stderr, "shim: a block of %u threads is not one of whole warps\n", threads);
        std::abort();
    }
    warp.call = [](const void* t) { (*static_cast<const Thread*>(t))(); };
    warp.thread = &thread;
    for (unsigned first = 0; first < threads; first += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            char* stack = warp.stacks.get() + static_cast<size_t>(lane) * kStack;
            warp.lanes[lane].begin(stack, kStack, enter);
            memcpy(stack, &kCanary, sizeof kCanary);
            warp.turn[lane] = 0;
            warp.ended[lane] = false;
        }
        int left = kLanes;
        while (left > 0) {
            left = 0;
            for (int lane = 0; lane < kLanes; ++lane) {
                warp.current = lane;
                threadIdx.x = first + static_cast<unsigned>(lane);
                switch_fibers(warp.scheduler, warp.lanes[lane]);
                left += warp.ended[lane] ? 0 : 1;
            }
            for (int lane = 0; lane < kLanes; ++lane) {
                if (memcmp(warp.stacks.get() + static_cast<size_t>(lane) * kStack, &kCanary, sizeof kCanary) == 0) continue;
                std::fprintf(stderr, "shim: a thread needs more than %zu bytes of stack\n", kStack);
                std::abort();
            }
            if (left != 0 && left != kLanes) {
                std::fprintf(stderr, "shim: %d lanes of a warp exchange values and the others have ended\n", left);
                std::abort();
            }
        }
    }
}

// The values that all lanes bring to an exchange.
template <class T>
void exchange(unsigned mask, T value, T (&all)[kLanes]) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a value of at most 64 bits");
    if (mask != 0xffffffffu) {
        std::fprintf(stderr, "shim: a mask that is not all lanes\n");
        std::abort();
    }
    const int lane = warp.current;
    uint64_t* values = warp.values[warp.turn[lane]++ % 2];
    memcpy(&values[lane], &value, sizeof value);
    switch_fibers(warp.lanes[lane], warp.scheduler);
    for (int i = 0; i < kLanes; ++i) memcpy(&all[i], &values[i], sizeof value);
}

}  // namespace shim

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    T all[shim::kLanes];
    shim::exchange(mask, value, all);
    return all[source % shim::kLanes];
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    T all[shim::kLanes];
    const int lane = shim::warp.current, source = lane + static_cast<int>(by);
    shim::exchange(mask, value, all);
    return all[source < shim::kLanes ? source : lane];
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    unsigned all[shim::kLanes];
    shim::exchange(mask, value, all);
    for (const unsigned other : all) value = max(value, other);
    return value;
}
