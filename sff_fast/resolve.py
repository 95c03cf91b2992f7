"""Finds the init plan of a model when the caller gives none."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sff_fast.errors import ArgumentError, PlanError
from sff_fast.names import unwrap
from sff_fast.plan import InitPlan
from sff_fast.shards import is_fully_sharded, plain_type
from sff_fast.tracing import trace

_PLANNERS: weakref.WeakKeyDictionary[nn.Module, weakref.WeakMethod] = weakref.WeakKeyDictionary()


def register_planner(model: nn.Module, planner: Callable[[], InitPlan]) -> None:
    """Say who knows the plan of a model.

    Args:
        model: The model.
        planner: A bound method that gives the plan; it counts for as long as its object lives.
    """
    _PLANNERS[model] = weakref.WeakMethod(planner)


def resolve_plan(model: nn.Module, plan: InitPlan | Callable[[], nn.Module] | None) -> InitPlan:
    """The init plan of a model: the one given, or traced from a constructor, or found by the model itself.

    With None it is, in this order, the plan of the adapter that holds the model; of ``type(model)(model.config)`` where the
    model has a config, as those of transformers do; of the model's own ``reset_parameters`` (see :func:`structure_copy`).

    Args:
        model: The model, wrapped or not.
        plan: A plan, a constructor without arguments, or None.

    Returns:
        The plan.

    Raises:
        PlanError: None was given and the model does not say how it is built.
        ArgumentError: ``plan`` is something else.
    """
    if isinstance(plan, InitPlan):
        return plan
    if callable(plan):
        return trace(plan)
    if plan is not None:
        opened = ": open a saved plan by sff_fast.InitPlan.load(path)" if isinstance(plan, (str, os.PathLike)) else ""
        raise ArgumentError(f"plan must be an InitPlan, a constructor or None, got {type(plan).__name__}{opened}")
    inner = unwrap(model)
    reference = _PLANNERS.get(inner)
    planner = reference() if reference is not None else None
    if planner is not None:
        return planner()
    if getattr(inner, "config", None) is not None:
        return _from_config(inner)
    reason = "fully_shard forbids copies" if is_fully_sharded(inner) else _why_not_reset(inner)
    if reason:
        raise _unknown(inner, reason)
    return _from_reset(inner)


def _unknown(model: nn.Module, reason: str) -> PlanError:
    name = plain_type(model).__name__
    return PlanError(
        f"{name} does not say how it is built: pass plan=sff_fast.trace(lambda: {name}(…)), plan=InitPlan.load(path), or a "
        f"constructor without arguments ({reason})"
    )


def _from_config(model: nn.Module) -> InitPlan:
    cls, config = plain_type(model), model.config

    def factory() -> nn.Module:
        return cls(copy.deepcopy(config))  # a constructor may fill in its config

    try:
        return trace(factory)
    except TypeError as error:
        raise _unknown(model, f"it has a config, but {cls.__name__}(config) fails: {error}") from error


# ---------------------------------------------------------------------- reset_parameters
def _why_not_reset(model: nn.Module) -> str:
    """Why ``reset_parameters`` does not say how every parameter is drawn; empty where it does."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        label = f"{name or 'the model itself'} ({type(module).__name__})"
        resets = callable(getattr(module, "reset_parameters", None))
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if own and not resets:
            return f"{label} has parameters and no reset_parameters"
        if not resets and not type(module).__module__.startswith("torch.nn.modules."):
            return f"{label} is no module of torch.nn and has no reset_parameters: its constructor may draw again"
        for parameter in own:
            if id(parameter) in owners:
                return f"{label} shares a parameter with {owners[id(parameter)]}: which of the two draws it is not known"
            owners[id(parameter)] = label
    return ""


def structure_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with memory of its own that nothing was written to, buffers zero.

    The values of parameters and buffers are not read; nothing of the model is changed.

    Args:
        model: The model.

    Returns:
        The copy, on the CPU.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")
    return copy.deepcopy(model, memo)


def _from_reset(model: nn.Module) -> InitPlan:
    def factory() -> nn.Module:
        made = structure_copy(model)
        made.apply(_reset)  # children first, as a constructor makes them before the module around them
        return made

    plan = trace(factory)
    plan.notes = (*plan.notes, "traced from reset_parameters of every module, not from a constructor")
    # The constructor's order of draws is not known: rng="torch" must not pretend that it is.
    plan.program = ()
    return plan


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
