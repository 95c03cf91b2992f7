// The widest lane type that this translation unit is compiled for, and names that end in its instruction set.
#pragma once

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

#define SFF_CONCAT_(a, b) a##b
#define SFF_CONCAT(a, b) SFF_CONCAT_(a, b)
