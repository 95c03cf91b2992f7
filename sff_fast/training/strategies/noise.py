"""``noise``: Gaussian noise of the size of SFF's change."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ... import backends, shards
from ...distributions import Normal
from ...errors import ArgumentError
from ...factors import match_factors, parse_factors
from ...inspect_parameters import check_parameters
from ...names import named_parameters
from ...plan import InitPlan, ParameterPlan, Segment
from ...smooth import remember_smoothing, smoothing_of
from ...stream import NOISE, STREAM_VERSION, check_seed, stream_id
from ...table import BoxTask, Pair, build
from ..config import Settings


def add_noise(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    """The strategy's ``prepare``: :func:`noise_` on the adapter's model.

    Raises:
        ArgumentError: As :func:`noise_`; or the run asks for torch's random numbers.
    """
    if settings.rng != "philox":
        raise ArgumentError(f"rng must be philox for noise, which the constructor does not draw, got {settings.rng!r}")
    plan = adapter.plan() if plan is None else plan
    return noise_(adapter.model, plan, settings.alpha, settings.seed, again=settings.again)


def noise_(
    model: nn.Module, plan: InitPlan, alpha: float | Mapping[str, float], seed: int = 0, *, again: bool = False
) -> dict[str, Any]:
    """Add to every parameter Gaussian noise whose norm is that of the change that SFF would make, in place.

    ``theta += z * |(1 - alpha) * (theta_rand - theta)| / |z|`` for each tensor, with z standard normal from the stream of
    purpose ``noise``, and theta_rand the draw that :func:`sff_fast.smooth_` mixes in with this seed. So SFF and this differ
    in the direction of the change alone: towards the initialisation, or anywhere.

    One scratch tensor of the largest parameter's size, in at least float32, is all that it takes.

    Args:
        model: The model, not sharded.
        plan: The init plan.
        alpha: As for :func:`sff_fast.smooth_`.
        seed: Seed of both draws.
        again: Allow it on a model that was smoothed before.

    Returns:
        The record that goes into the report and beside the saved model, with the norm of every tensor's change.

    Raises:
        ArgumentError: The model was smoothed before, or alpha does not fit.
        PlanError: The plan does not fit the model, or a parameter is sharded or cannot be written in place.

    Source: the control experiment for "Lost in the Non-convex Loss Landscape", ICLR 2026, equation of SFF.
    """
    begin, key = time.perf_counter(), check_seed(seed)
    if smoothing_of(model) and not again:
        raise ArgumentError("the model was smoothed before: load the pre-trained weights into a new model, or pass again=True")
    parameters = named_parameters(model)
    matched = match_factors(list(parameters), parse_factors(alpha, None, None))
    changed = {name: parameters[name] for name, (kept, _) in matched.items() if kept != 1.0}
    for name, parameter in changed.items():
        if shards.is_sharded(parameter):
            raise ArgumentError(f"noise needs whole tensors for their norms, and {name!r} is sharded: add it before sharding")
    check_parameters(changed)
    plan.check(changed, others=parameters)
    norms = {}
    for name, parameter in changed.items():
        share = matched[name][1]
        wide = torch.promote_types(parameter.dtype, torch.float32)
        scratch = parameter.detach().to(wide, copy=True)
        _run(build([Pair(plan[name], scratch, -share, share)], plan, key))
        norms[name] = norm = _norm(scratch)
        standard = _standard_normal(plan[name])
        _run(_noise(build([Pair(standard, scratch, 0.0, 1.0)], None, key), name))
        size = _norm(scratch)
        _run(_noise(build([Pair(standard, parameter, 1.0, norm / size if size else 0.0)], None, key), name))
    torch.autograd.graph.increment_version(list(changed.values()))
    record = {
        "purpose": "noise",
        "seed": key,
        "stream_version": STREAM_VERSION,
        "plan_hash": plan.hash,
        "norms": norms,
        "untouched": [name for name in parameters if name not in changed],
        "seconds": time.perf_counter() - begin,
    }
    remember_smoothing(model, [*smoothing_of(model), record])
    return record


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _standard_normal(parameter: ParameterPlan) -> ParameterPlan:
    """The same parameter as one draw of its own name from the standard normal distribution."""
    whole = Segment(Normal(0.0, 1.0), (parameter.numel,), (1,), 0, parameter.name, (1,), 0)
    return ParameterPlan(parameter.name, parameter.shape, parameter.dtype, (whole,))


def _noise(tasks: list[BoxTask], name: str) -> list[BoxTask]:
    for task in tasks:
        task.stream = stream_id(name, NOISE)
    return tasks


def _run(tasks: list[BoxTask]) -> None:
    if tasks:
        backends.choose("auto", tasks[0].tensor.device)[1](tasks, None)
