// One instruction set's kernels. CMake compiles this file once for each, with SFF_ISA and the compiler's flags for it.
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
#include "smooth_loop.h"

#define SFF_CONCAT_(a, b) a##b
#define SFF_CONCAT(a, b) SFF_CONCAT_(a, b)

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
