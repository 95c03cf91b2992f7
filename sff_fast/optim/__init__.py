"""The optimizers that a fine-tuning run can name.

An optimizer registers a factory under the name that ``finetune(optimizer=...)`` and ``--optimizer`` accept. ``adam`` and
``adamw`` are torch's fused implementations, ``fused-adam`` and ``fused-adamw`` ours; :func:`register_optimizer` adds others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import ArgumentError
from .fused_adamw import FusedAdam, FusedAdamW
from .task import STATE_TYPES

OptimizerFactory = Callable[..., torch.optim.Optimizer]

_FACTORIES: dict[str, OptimizerFactory] = {}
_STATES: dict[str, tuple[str, ...]] = {}


def register_optimizer(name: str, states: tuple[str, ...] = ()) -> Callable[[OptimizerFactory], OptimizerFactory]:
    """Decorator: make an optimizer available under a name.

    Args:
        name: The name, as users write it.
        states: Precisions of its states that can be chosen. Default none: it has no choice.

    Returns:
        A decorator for a function ``(params, lr, weight_decay) -> torch.optim.Optimizer``, which it returns unchanged. Where
        there are ``states``, it takes named parameters and by name ``state_dtype`` and the options of :class:`FusedAdamW`.

    Raises:
        ArgumentError: The name is taken.
    """

    def register(factory: OptimizerFactory) -> OptimizerFactory:
        if name in _FACTORIES:
            raise ArgumentError(f"the optimizer name {name!r} is registered already")
        _FACTORIES[name] = factory
        _STATES[name] = states
        return factory

    return register


def optimizer_names() -> list[str]:
    """The names that :func:`make_optimizer` knows, sorted."""
    return sorted(_FACTORIES)


def check_optimizer_name(name: str) -> None:
    """Raise ArgumentError, listing what there is, for a name that is not registered."""
    if name not in _FACTORIES:
        raise ArgumentError(f"optimizer must be one of {', '.join(optimizer_names())}, got {name!r}")


def check_optimizer_state(name: str, state_dtype: str | None) -> None:
    """Raise ArgumentError for a precision of the states that the optimizer does not have; None is its own choice."""
    check_optimizer_name(name)
    if state_dtype is None or state_dtype in _STATES[name]:
        return
    if _STATES[name]:
        raise ArgumentError(f"optimizer_state must be one of {', '.join(_STATES[name])}, got {state_dtype!r}")
    able = ", ".join(other for other in optimizer_names() if _STATES[other])
    raise ArgumentError(f"optimizer_state={state_dtype!r} needs an optimizer that can choose ({able}), got optimizer={name!r}")


def default_optimizer(needs_choice: bool) -> str:
    """The optimizer of a run that names none: torch's Adam, or ours where something is asked for that only it has."""
    return "fused-adam" if needs_choice else "adam"


def has_states(name: str) -> bool:
    """Whether an optimizer's states have a precision to choose, and it takes the options of :class:`FusedAdamW`."""
    check_optimizer_name(name)
    return bool(_STATES[name])


def make_optimizer(
    name: str,
    params: Iterable[torch.nn.Parameter] | Iterable[tuple[str, torch.nn.Parameter]],
    lr: float,
    weight_decay: float = 0.0,
    state_dtype: str | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Make an optimizer by name.

    Args:
        name: A registered name.
        params: The parameters to train, with or without names.
        lr: Learning rate.
        weight_decay: Weight decay; ``adam`` adds it to the gradient (L2), ``adamw`` decouples it.
        state_dtype: Precision of the optimizer's states, where it can be chosen. Default None: the optimizer's own.
        **options: Options of :class:`FusedAdamW` for the optimizers that have them; the others are not given any.

    Raises:
        ArgumentError: The name is unknown, or the optimizer does not have that precision.
    """
    check_optimizer_state(name, state_dtype)
    params = list(params)
    if not _STATES[name]:
        return _FACTORIES[name]([p[1] if isinstance(p, tuple) else p for p in params], lr, weight_decay)
    if state_dtype is not None:
        options["state_dtype"] = state_dtype
    return _FACTORIES[name](params, lr, weight_decay, **options)


@register_optimizer("adam")
def _adam(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=lr, weight_decay=weight_decay, fused=True)


@register_optimizer("adamw")
def _adamw(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)


@register_optimizer("fused-adam", states=tuple(STATE_TYPES))
def _fused_adam(params: list[Any], lr: float, weight_decay: float, **options: Any) -> torch.optim.Optimizer:
    return FusedAdam(params, lr=lr, weight_decay=weight_decay, **options)


@register_optimizer("fused-adamw", states=tuple(STATE_TYPES))
def _fused_adamw(params: list[Any], lr: float, weight_decay: float, **options: Any) -> torch.optim.Optimizer:
    return FusedAdamW(params, lr=lr, weight_decay=weight_decay, **options)
