#include "parallel.h"

#include <system_error>
#include <thread>
#include <vector>

namespace sff {

int fork_join(int threads, const std::function<void(int)>& work) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) {
        try {
            others.emplace_back(work, t);
        } catch (const std::system_error&) {
            break;  // the work is claimed piece by piece, so that fewer threads do all of it
        }
    }
    work(0);
    for (auto& other : others) other.join();
    return 1 + static_cast<int>(others.size());
}

}  // namespace sff
