// One instruction set's optimizer. CMake compiles this file once for each, as it does smooth_isa.cpp.
#if defined(SFF_LANES_AVX512)
#include "lanes_avx512.h"
#define SFF_LANES Avx512
#elif defined(SFF_LANES_AVX2)
#include "lanes_avx2.h"
#define SFF_LANES Avx2
#else
#include "lanes_portable.h"
#define SFF_LANES Portable
#endif
#include "adamw_loop.h"

#define SFF_CONCAT_(a, b) a##b
#define SFF_CONCAT(a, b) SFF_CONCAT_(a, b)

namespace sff {

const AdamWKernel* SFF_CONCAT(adamw_, SFF_ISA)() {
    static const AdamWKernel kernel = {SFF_ISA::adamw_step<SFF_ISA::SFF_LANES>, SFF_ISA::sum_of_squares};
    return &kernel;
}

}  // namespace sff
