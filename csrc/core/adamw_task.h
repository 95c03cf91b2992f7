// One step of AdamW on one parameter. Plain data, the same on host and device; its layout is mirrored by
// sff_fast/optim/task.py (ADAMW_DTYPE) and checked when the module is first used.
#pragma once

#include <cstdint>

namespace sff {

enum StateType : int32_t { kStateFloat32 = 0, kStateBFloat16 = 1, kStateInt8 = 2 };
// How the parameter is stored after the step: rounded to nearest even, rounded stochastically (bfloat16), or with what
// rounding took away kept in `compensation` (bfloat16 and float16).
enum Storing : int32_t { kStoreNearest = 0, kStoreStochastic = 1, kStoreCompensated = 2 };

constexpr int64_t kQuantizedBlock = 256;  // elements of a parameter that share the scales of the int8 states

// Sums of squares are made of pieces of this many elements of a task: element i joins partial sum i mod kSumWidth of its
// piece in order, these are added by halves, and pieces one after the other. So the sum does not depend on who computes it.
constexpr int64_t kSumPiece = 64 << 10;
constexpr int kSumWidth = 16;

// All tensors hold `elements` numbers in the parameter's order in memory. Addresses of what a step does not have are 0.
struct AdamWTask {
    uint64_t param, grad, compensation;                              // of the parameter's dtype
    uint64_t exp_avg, exp_avg_sq, max_exp_avg_sq;                    // of the state type; the last for amsgrad
    uint64_t exp_avg_scale, exp_avg_sq_scale, max_exp_avg_sq_scale;  // kStateInt8: fp32, one a block
    int64_t elements;
    uint64_t round_seed, round_stream;  // kStoreStochastic: random stream v1
    int32_t param_dtype;                // DType of param, grad and compensation; not kFloat64
    int32_t state_type, storing;
    uint32_t dither;   // of this step, see core/quantize.h
    float grad_scale;  // what the gradient is multiplied by: -1 to maximize, 1 / loss scale, clipping
    float l2;          // Adam: weight decay that joins the gradient, else 0
    float decay;       // AdamW: 1 - lr * weight_decay, else 1
    float beta2, one_minus_beta1, one_minus_beta2;
    float correction;  // 1 / sqrt(1 - beta2^step)
    float eps;
    float step_size;  // lr / (1 - beta1^step)
    uint32_t reserved;
};

static_assert(sizeof(AdamWTask) == 12 * 8 + 4 * 4 + 9 * 4 + 4, "no padding");

}  // namespace sff
