"""The optimizers that a fine-tuning run can name.

An optimizer registers a factory under the name that ``finetune(optimizer=...)`` and ``--optimizer`` accept. ``adam`` and
``adamw`` are torch's fused implementations, ``fused-adam`` and ``fused-adamw`` ours; :func:`register_optimizer` adds others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..errors import ArgumentError
from .fused_adamw import FusedAdam, FusedAdamW

OptimizerFactory = Callable[[list[torch.nn.Parameter], float, float], torch.optim.Optimizer]

_FACTORIES: dict[str, OptimizerFactory] = {}


def register_optimizer(name: str) -> Callable[[OptimizerFactory], OptimizerFactory]:
    """Decorator: make an optimizer available under a name.

    Args:
        name: The name, as users write it.

    Returns:
        A decorator for a function ``(params, lr, weight_decay) -> torch.optim.Optimizer``, which it returns unchanged.

    Raises:
        ArgumentError: The name is taken.
    """

    def register(factory: OptimizerFactory) -> OptimizerFactory:
        if name in _FACTORIES:
            raise ArgumentError(f"the optimizer name {name!r} is registered already")
        _FACTORIES[name] = factory
        return factory

    return register


def optimizer_names() -> list[str]:
    """The names that :func:`make_optimizer` knows, sorted."""
    return sorted(_FACTORIES)


def check_optimizer_name(name: str) -> None:
    """Raise ArgumentError, listing what there is, for a name that is not registered."""
    if name not in _FACTORIES:
        raise ArgumentError(f"optimizer must be one of {', '.join(optimizer_names())}, got {name!r}")


def make_optimizer(
    name: str, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Make an optimizer by name.

    Args:
        name: A registered name.
        params: The parameters to train.
        lr: Learning rate.
        weight_decay: Weight decay; ``adam`` adds it to the gradient (L2), ``adamw`` decouples it.

    Raises:
        ArgumentError: The name is unknown.
    """
    check_optimizer_name(name)
    return _FACTORIES[name](list(params), lr, weight_decay)


@register_optimizer("adam")
def _adam(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=lr, weight_decay=weight_decay, fused=True)


@register_optimizer("adamw")
def _adamw(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)


@register_optimizer("fused-adam")
def _fused_adam(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return FusedAdam(params, lr=lr, weight_decay=weight_decay)


@register_optimizer("fused-adamw")
def _fused_adamw(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return FusedAdamW(params, lr=lr, weight_decay=weight_decay)
