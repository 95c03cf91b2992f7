// What a step's number and the options of a parameter decide, computed where the step's number lies: on the device.
//
// sff_fast/optim/task.py (set_coefficients) is the same on the host, in the same order and with the same bits: fp64, of which
// only +, -, * , / and the square root are used. A library's pow promises no bits, so that powers are products.
#pragma once

#include "../core/adamw_task.h"
#include "../core/scalar.h"

namespace sff {

enum RateType : int32_t { kRateNumber = 0, kRateFloat32 = 1, kRateFloat64 = 2 };

// Of one parameter. Plain data; its layout is mirrored by sff_fast/optim/task.py (OPTIONS_DTYPE).
struct AdamWOptions {
    uint64_t step;     // address of the number of steps so far, fp32
    uint64_t lr;       // address of the learning rate, of rate_type, or 0
    double lr_number;  // the learning rate where rate_type is kRateNumber
    double beta1, beta2, eps, weight_decay;
    uint64_t seed;
    int32_t rate_type;
    uint32_t maximize, decoupled, reserved;
};
static_assert(sizeof(AdamWOptions) == 10 * 8, "no padding");

namespace SFF_ISA {

// `base` times itself, by squaring.
SFF_INLINE double power(double base, uint64_t exponent) {
    double result = 1.0;
    SFF_ONCE
    for (; exponent != 0; exponent >>= 1, base = base * base)
        if ((exponent & 1) != 0) result = result * base;
    return result;
}

// Sets what step number `count`, from 1 on, multiplies by; grad_scale: what gradients are multiplied by.
SFF_INLINE void set_coefficients(const AdamWOptions& o, double lr, float count, double grad_scale, AdamWTask& t) {
    const uint64_t number = static_cast<uint64_t>(count);
    t.grad_scale = static_cast<float>(o.maximize != 0 ? -grad_scale : grad_scale);
    t.l2 = o.decoupled != 0 ? 0.0f : static_cast<float>(o.weight_decay);
    t.decay = o.decoupled != 0 ? static_cast<float>(1.0 - lr * o.weight_decay) : 1.0f;
    t.beta2 = static_cast<float>(o.beta2);
    t.eps = static_cast<float>(o.eps);
    t.one_minus_beta1 = static_cast<float>(1.0 - o.beta1);
    t.one_minus_beta2 = static_cast<float>(1.0 - o.beta2);
    t.correction = static_cast<float>(1.0 / square_root(1.0 - power(o.beta2, number)));
    t.step_size = static_cast<float>(lr / (1.0 - power(o.beta1, number)));
    t.round_seed = o.seed + number * 0x9E3779B97F4A7C15ull;
    t.dither = static_cast<uint32_t>(t.round_seed >> 32);
}

}  // namespace SFF_ISA
}  // namespace sff
