"""``sff_fast::adamw_``: one step of AdamW or Adam on a list of parameters, in place.

The schema follows ``torch._fused_adamw_``, with what our states have besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sff_fast.backends import reference as stream_reference
from sff_fast.errors import ArgumentError
from sff_fast.optim import kernels, reference
from sff_fast.optim.fused_adamw import OPTIMIZERS
from sff_fast.optim.task import ADAMW_DTYPE, BLOCK, COMPENSATED, NEAREST, PARAM_DTYPES, STATE_TYPES, STOCHASTIC, set_coefficients
from sff_fast.stream import ROUND, stream_id

STORING = {"nearest": NEAREST, "stochastic": STOCHASTIC, "kahan": COMPENSATED}
_STATES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "int8"}
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def _signed(word: int) -> int:
    """A number in [0, 2**64) as the operator's 64-bit integers take it: from 2**63 on as a negative one."""
    return word - (word >> 63 << 64)


def round_streams(names: Sequence[str]) -> list[int]:
    """The streams of the stochastic rounding of parameters with these names, as ``adamw_`` takes them."""
    return [_signed(stream_id(name, ROUND)) for name in names]


@torch.library.custom_op(
    "sff_fast::adamw_",
    mutates_args=("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "scales", "compensations"),
)
def adamw_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    max_exp_avg_sqs: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    compensations: Sequence[torch.Tensor],
    state_steps: Sequence[torch.Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = True,
    maximize: bool = False,
    grad_scale: float = 1.0,
    storing: str = "nearest",
    seed: int = 0,
    streams: Sequence[int] | None = None,
) -> None:
    """One step of all parameters.

    Args:
        params: Contiguous float32, bfloat16 or float16, all on one device.
        grads: Of the parameters' dtype and shape.
        exp_avgs: First moments, of the parameters' shape; all float32, all bfloat16, or all uint8 (int8 states).
        exp_avg_sqs: Second moments, alike.
        max_exp_avg_sqs: Alike for amsgrad, else empty.
        scales: For uint8 moments float32 scales, one for 256 elements: those of all ``exp_avgs``, then of all
            ``exp_avg_sqs``, then of all ``max_exp_avg_sqs``. Else empty.
        compensations: For ``storing="kahan"`` what rounding took away, of the parameters' dtype and shape. Else empty.
        state_steps: The number of this step, from 1 on: float32 on the CPU, one element each.
        lr: Learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the denominator.
        weight_decay: Weight decay.
        decoupled: AdamW's weight decay (default), or Adam's, which joins the gradient.
        maximize: Ascend. Default False.
        grad_scale: What gradients are multiplied by. Default 1.
        storing: ``"nearest"`` (default), ``"stochastic"`` (bfloat16) or ``"kahan"`` (bfloat16 and float16).
        seed: Of the stochastic rounding and the dither, a 64-bit integer. Default 0.
        streams: For ``storing="stochastic"``: :func:`round_streams` of the parameters' names.

    Raises:
        ArgumentError: The lists do not fit each other.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """
    if not params:
        return
    lists = {
        "param": params,
        "grad": grads,
        "exp_avg": exp_avgs,
        "exp_avg_sq": exp_avg_sqs,
        **({"max_exp_avg_sq": max_exp_avg_sqs} if max_exp_avg_sqs else {}),
        **({"compensation": compensations} if storing == "kahan" else {}),
    }
    if storing not in STORING:
        raise ArgumentError(f"storing must be one of {', '.join(STORING)}, got {storing!r}")
    state_type = _STATES.get(exp_avgs[0].dtype if exp_avgs else None)
    if state_type is None:
        raise ArgumentError("exp_avgs must be float32, bfloat16 or uint8 tensors, one for each parameter")
    if state_type == "int8":
        for k, name in enumerate(name for name in _MOMENTS if name in lists):
            lists[f"{name}_scale"] = scales[k * len(params) : (k + 1) * len(params)]
    _check(lists, params, state_steps, (streams or ()) if storing == "stochastic" else None)
    table = np.zeros(len(params), ADAMW_DTYPE)
    for name, tensors in lists.items():
        table[name] = [tensor.data_ptr() for tensor in tensors]
    table["elements"] = [parameter.numel() for parameter in params]
    table["param_dtype"] = [PARAM_DTYPES[parameter.dtype] for parameter in params]
    table["state_type"], table["storing"] = STATE_TYPES[state_type], STORING[storing]
    if storing == "stochastic":
        table["round_stream"] = [stream % (1 << 64) for stream in streams]
    options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
    count = np.array([float(step) for step in state_steps])
    set_coefficients(table, count, {**options, "seed": seed % (1 << 64)}, grad_scale, decoupled)
    device = params[0].device
    if kernels.available(device):
        kernels.step(table, device)
        return
    with stream_reference._calling_thread_alone():
        for i, task in enumerate(table):
            flat = {name: tensors[i].view(-1) for name, tensors in lists.items()}
            reference.step(flat.pop("param"), flat.pop("grad"), flat, task)


@adamw_.register_fake
def _(params: Sequence[torch.Tensor], *others: object, **options: object) -> None:
    return None


@torch.library.custom_op("sff_fast::optimizer_step_", mutates_args=("params",))
def optimizer_step_(params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], places: Sequence[int], handle: int) -> None:
    """The step of a whole FusedAdam or FusedAdamW, which reads its options and keeps its states when this runs.

    A compiled function holds nothing of these, so that no option makes it compile again.

    Args:
        params: The values of the parameters that have a gradient.
        grads: Their gradients.
        places: Their numbers, counted over all groups.
        handle: The optimizer's key in ``sff_fast.optim.fused_adamw.OPTIMIZERS``.
    """
    OPTIMIZERS[handle].step_given(params, grads, places)


@optimizer_step_.register_fake
def _(params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], places: Sequence[int], handle: int) -> None:
    return None


def _check(
    lists: dict[str, Sequence[torch.Tensor]],
    params: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    streams: Sequence[int] | None,
) -> None:
    """Refuse lists that do not fit each other."""
    for name, values in {**lists, "state_step": steps, **({} if streams is None else {"stream": streams})}.items():
        if len(values) != len(params):
            raise ArgumentError(f"{name}s: expected {len(params)}, one for each parameter, got {len(values)}")
    expected = {name: tensors[0].dtype for name, tensors in lists.items() if name in _MOMENTS}
    expected = dict.fromkeys(expected, lists["exp_avg"][0].dtype)
    for i, parameter in enumerate(params):
        if parameter.dtype not in PARAM_DTYPES:
            raise ArgumentError(f"params[{i}] is {parameter.dtype}: expected float32, bfloat16 or float16")
        for name, tensors in lists.items():
            scale = name.endswith("_scale")
            shape = (-(-parameter.numel() // BLOCK),) if scale else tuple(parameter.shape)
            dtype = torch.float32 if scale else expected.get(name, parameter.dtype)
            x = tensors[i]
            if x.dtype != dtype or tuple(x.shape) != shape or x.device != params[0].device or not x.is_contiguous():
                raise ArgumentError(
                    f"{name}s[{i}] is {x.dtype} {tuple(x.shape)} on {x.device} with strides {tuple(x.stride())}: expected "
                    f"contiguous {dtype} {shape} on {params[0].device}"
                )
