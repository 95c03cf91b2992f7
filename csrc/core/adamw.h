// The update of Adam and AdamW, written once for every lane type.
//
// Sources: Kingma & Ba, "Adam", ICLR 2015; Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019;
// amsgrad: Reddi, Kale & Kumar, "On the convergence of Adam and beyond", ICLR 2018. Order of operations as in torch.optim.
#pragma once

#include "adamw_task.h"
#include "scalar.h"

namespace sff {
namespace SFF_ISA {

template <class L>
struct AdamWCoefficients {
    using F = typename L::F;
    F grad_scale, l2, decay, beta2, one_minus_beta1, one_minus_beta2, correction, eps, step_size;
    bool coupled;  // weight decay joins the gradient

    explicit SFF_INLINE AdamWCoefficients(const AdamWTask& t)
        : grad_scale(L::f(t.grad_scale)),
          l2(L::f(t.l2)),
          decay(L::f(t.decay)),
          beta2(L::f(t.beta2)),
          one_minus_beta1(L::f(t.one_minus_beta1)),
          one_minus_beta2(L::f(t.one_minus_beta2)),
          correction(L::f(t.correction)),
          eps(L::f(t.eps)),
          step_size(L::f(t.step_size)),
          coupled(t.l2 != 0.0f) {}
};

// One step of a vector of elements, all in fp32, in two parts: a loop may do other things before the second, which waits for
// the root. max_exp_avg_sq is read and written for amsgrad alone. Returns the root of the second moment.
template <class L, bool Amsgrad>
SFF_INLINE typename L::F adamw_moments(typename L::F& param, typename L::F grad, typename L::F& exp_avg,
                                       typename L::F& exp_avg_sq, typename L::F& max_exp_avg_sq, const AdamWCoefficients<L>& c) {
    using F = typename L::F;
    grad = grad * c.grad_scale;
    if (c.coupled) {
        grad = fused(c.l2, param, grad);
    } else {
        param = param * c.decay;
    }
    exp_avg = fused(c.one_minus_beta1, grad - exp_avg, exp_avg);
    exp_avg_sq = fused(c.one_minus_beta2 * grad, grad, c.beta2 * exp_avg_sq);
    F second = exp_avg_sq;
    if (Amsgrad) second = max_exp_avg_sq = larger(max_exp_avg_sq, exp_avg_sq);  // of a NaN and a number, the second argument
    return square_root(second);
}

template <class L>
SFF_INLINE typename L::F adamw_param(typename L::F param, typename L::F exp_avg, typename L::F root,
                                     const AdamWCoefficients<L>& c) {
    const typename L::F denominator = fused(root, c.correction, c.eps);
    return param - (c.step_size * exp_avg) / denominator;
}

template <class L, bool Amsgrad>
SFF_INLINE void adamw(typename L::F& param, typename L::F grad, typename L::F& exp_avg, typename L::F& exp_avg_sq,
                      typename L::F& max_exp_avg_sq, const AdamWCoefficients<L>& c) {
    const typename L::F root = adamw_moments<L, Amsgrad>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c);
    param = adamw_param<L>(param, exp_avg, root, c);
}

// The norm of a gradient whose squares sum up to `sum`, and what clipping to `max_norm` multiplies the gradient by.
// Source: torch.nn.utils.clip_grad_norm_. A NaN stays in the factor: it belongs into the parameters, as with torch.
struct Clipping {
    double norm;
    float factor;
};
SFF_INLINE Clipping clipping(double sum, double grad_scale, double max_norm) {
    const double norm = square_root(sum) * grad_scale, factor = max_norm / (norm + 1e-6);
    return {norm, factor >= 1.0 ? 1.0f : static_cast<float>(factor)};
}

}  // namespace SFF_ISA
}  // namespace sff
