// One instruction set's optimizer. CMake compiles this file once for each, as it does smooth_isa.cpp.
#include "adamw_loop.h"
#include "lanes.h"

namespace sff {

const AdamWKernel* SFF_CONCAT(adamw_, SFF_ISA)() {
    static const AdamWKernel kernel = {SFF_ISA::adamw_step<SFF_ISA::SFF_LANES>, SFF_ISA::sum_of_squares};
    return &kernel;
}

}  // namespace sff
