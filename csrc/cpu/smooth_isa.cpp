// One instruction set's kernels. CMake compiles this file once for each, with SFF_ISA and the compiler's flags for it.
#include "lanes.h"
#include "smooth_loop.h"

namespace sff {

const Kernel* SFF_CONCAT(kernel_, SFF_ISA)() {
    static const Kernel kernel = {
        SFF_ISA::SFF_LANES::name,
        SFF_ISA::run_task<SFF_ISA::SFF_LANES>,
        SFF_ISA::philox_words<SFF_ISA::SFF_LANES>,
        SFF_ISA::transform<SFF_ISA::SFF_LANES>,
    };
    return &kernel;
}

}  // namespace sff
