"""Strategies that change the weights before training: smoothing, its two halves, and training from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...smooth import VOLATILE, fill_, smooth_, smoothing_of
from ..config import Settings
from ..log import as_json


def fill(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    """``tfs``: every weight is drawn anew."""
    plan = adapter.plan() if plan is None else plan
    return fill_(adapter.model, plan, seed=settings.seed, rng=settings.rng).to_json()


def smooth(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    """``sff``: ``alpha * theta_pre + (1 - alpha) * theta_rand``."""
    return _mix(adapter, settings, plan, alpha=settings.alpha)


def shrink(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    """``shrink``: ``alpha * theta_pre``, the one half of smoothing.

    Source: Ash & Adams, "On warm-starting neural network training", NeurIPS 2020 (shrink-and-perturb without perturbing).
    """
    return _mix(adapter, settings, plan, shrink=settings.alpha, perturb=_each(settings.alpha, lambda alpha: 0.0))


def perturb(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    """``perturb``: ``theta_pre + (1 - alpha) * theta_rand``, the other half of smoothing.

    Source: Ash & Adams, "On warm-starting neural network training", NeurIPS 2020 (shrink-and-perturb without shrinking).
    """
    ones = _each(settings.alpha, lambda alpha: 1.0)
    return _mix(adapter, settings, plan, shrink=ones, perturb=_each(settings.alpha, lambda alpha: 1.0 - alpha))


def _each(alpha: float | Mapping[str, float], change: Callable[[float], float]) -> float | dict[str, float]:
    """A function of alpha, or of every alpha of a mapping."""
    if isinstance(alpha, Mapping):
        return {pattern: change(value) for pattern, value in alpha.items()}
    return change(alpha)


def _mix(adapter: Any, settings: Settings, plan: Any, **factors: Any) -> dict[str, Any]:
    plan = adapter.plan() if plan is None else plan
    return smooth_(adapter.model, plan, seed=settings.seed, rng=settings.rng, again=settings.again, **factors).to_json()


def is_prepared(model: torch.nn.Module, report: dict[str, Any]) -> bool:
    """Whether the last smoothing of a model is the one that a report tells of, as after an interruption in a notebook."""
    last = smoothing_of(model)[-1:]
    return any(
        {key: value for key, value in as_json(one).items() if key not in VOLATILE}
        == {key: value for key, value in report.items() if key not in VOLATILE}
        for one in last
    )
