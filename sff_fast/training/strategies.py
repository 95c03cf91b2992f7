"""The fine-tuning strategies: how the weights are prepared, and what is trained in which phase."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import ArgumentError
from ..smooth import VOLATILE, fill_, smooth_, smoothing_of
from .config import Settings
from .log import as_json


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimizer and one learning-rate schedule.

    Attributes:
        name: ``"full"`` or ``"head"``.
        epochs: Epochs at most.
        head_only: Whether only the adapter's head parameters are trained.
        last_step: The run's step count at which the phase ends at the latest; None for no limit.
    """

    name: str
    epochs: int
    head_only: bool
    last_step: int | None


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What distinguishes one way of fine-tuning from another.

    Attributes:
        name: The name that users write.
        summary: One line for help texts and reports.
        prepare: Changes the weights before training, ``(adapter, settings, plan) -> report``; None leaves them.
        uses_alpha: Whether alpha means something to it.
        probes: Whether there is a phase that trains the head alone.
        tunes_fully: Whether there is a phase that trains all parameters.
    """

    name: str
    summary: str
    prepare: Callable[[Any, Settings, Any], dict[str, Any]] | None
    uses_alpha: bool = False
    probes: bool = False
    tunes_fully: bool = True

    def phases(self, settings: Settings) -> tuple[Phase, ...]:
        """The phases of a run with these settings."""
        if not self.probes:
            return (Phase("full", settings.epochs, False, settings.max_steps),) if self.tunes_fully else ()
        if not self.tunes_fully:
            return (Phase("head", settings.epochs, True, settings.max_steps),)
        # The two phases share the budget of epochs and steps, so that every strategy sees as many windows.
        probing = settings.lp_epochs
        limit = settings.max_steps
        probing_limit = None if limit is None else min(limit - 1, max(1, limit * probing // settings.epochs))
        return (Phase("head", probing, True, probing_limit), Phase("full", settings.epochs - probing, False, limit))


def _fill(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    plan = adapter.plan() if plan is None else plan
    return fill_(adapter.model, plan, seed=settings.seed, rng=settings.rng).to_json()


def _smooth(adapter: Any, settings: Settings, plan: Any) -> dict[str, Any]:
    return smooth_(
        adapter.model,
        adapter.plan() if plan is None else plan,
        alpha=settings.alpha,
        seed=settings.seed,
        rng=settings.rng,
        again=settings.again,
    ).to_json()


def is_prepared(model: torch.nn.Module, report: dict[str, Any]) -> bool:
    """Whether the last smoothing of a model is the one that a report tells of, as after an interruption in a notebook."""
    last = smoothing_of(model)[-1:]
    return any(
        {key: value for key, value in as_json(one).items() if key not in VOLATILE}
        == {key: value for key, value in report.items() if key not in VOLATILE}
        for one in last
    )


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("zero-shot", "the pre-trained model as it is", None, tunes_fully=False),
        Strategy("tfs", "train from scratch: the same architecture from a fresh random initialisation", _fill),
        Strategy("ff", "full fine-tuning of the pre-trained weights", None),
        Strategy("sff", "smooth the weights with a random initialisation, then full fine-tuning", _smooth, uses_alpha=True),
        Strategy("lp", "linear probing: only the head is trained", None, probes=True, tunes_fully=False),
        Strategy("lp-ff", "linear probing, then full fine-tuning", None, probes=True),
    )
}
"""Name to strategy, in the order in which they are listed and compared."""


@contextlib.contextmanager
def trainable(adapter: Any, phase: Phase) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The parameters that a phase trains, by name; ``requires_grad`` is as it was when the block ends.

    The model stays in training mode also where only the head is trained, as in the reference implementation: the frozen
    part keeps its dropout.

    Raises:
        ArgumentError: The family has no head, or nothing that can be trained.
    """
    before = [(parameter, parameter.requires_grad) for parameter in adapter.model.parameters()]
    try:
        if phase.head_only:
            head = [parameter for _, parameter in adapter.head_parameters()]
            if not head:
                raise ArgumentError(f"the family {adapter.family!r} has no head parameters: lp and lp-ff cannot be used")
            for parameter, _ in before:
                parameter.requires_grad_(False)
            for parameter in head:
                parameter.requires_grad_(True)
        named = adapter.model.named_parameters()
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        if not parameters:
            raise ArgumentError(f"the model of the family {adapter.family!r} has no parameter that requires a gradient")
        yield parameters
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def check_trainable(adapter: Any, settings: Settings) -> None:
    """Check that every phase of a run has something to train.

    Raises:
        ArgumentError: As :func:`trainable`.
    """
    for phase in STRATEGIES[settings.strategy].phases(settings):
        with trainable(adapter, phase):
            pass
