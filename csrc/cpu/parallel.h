// One fork-join: `threads` workers, this one included, call work(thread) once each.
#pragma once

#include <functional>

namespace sff {

// Threads live for this call only: nothing spins or outlives it, so it is safe after fork and from several callers at
// once. Where the system grants fewer threads, fewer run. Returns how many ran.
int fork_join(int threads, const std::function<void(int)>& work);

}  // namespace sff
