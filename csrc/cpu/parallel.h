// How the work of one call is shared out among threads: claimed piece by piece, in one fork-join.
#pragma once

#include <cstdint>
#include <functional>

namespace sff {

// Threads live for this call only: nothing spins or outlives it, so it is safe after fork and from several callers at
// once. Calls work(thread) once on each of `threads` of them, the caller's included. Where the system grants fewer threads,
// fewer run. Returns how many ran.
int fork_join(int threads, const std::function<void(int)>& work);

// What is measured for a kernel, in whatever it counts its work in.
struct Grain {
    int64_t least;       // claimed at a time, in whole multiples of this: tens of microseconds of work
    int64_t most;        // claimed at a time
    int64_t per_thread;  // below which a further thread costs more than it brings
};

struct Shares {
    int64_t claim;  // how much a thread claims at a time
    int threads;    // how many are worth starting
};

// Long claims, since longer streams of memory are faster, as far as every thread still has 32 of them or more, so that one
// which is held up does not hold up the end.
Shares shares_of(int64_t total, int threads, const Grain& grain);

// Calls work(begin, end) for [0, claim), [claim, 2 claim) and so on up to `total`, once each. A thread takes the next part when
// it is done with one, so that a thread which is held up holds up that part alone; in the default floating-point environment.
// Returns how many threads ran.
int share_out(int64_t total, const Shares& shares, const std::function<void(int64_t, int64_t)>& work);

}  // namespace sff
