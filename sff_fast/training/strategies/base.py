"""What a strategy is made of: how the weights are prepared, what is trained in which phase, what goes on beside the loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...errors import ArgumentError
from ..config import PRECISIONS, Settings
from .method import Method
from .options import Option


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
        method: What it does during training, one object a run; the default does nothing.
        option: Its own option, or None.
        uses_alpha: Whether alpha means something to it.
        probes: Whether there is a phase that trains the head alone.
        tunes_fully: Whether there is a phase that trains all parameters.
        whole_gradients: Whether it needs all gradients before the step, which ``release_gradients`` frees one by one.
        extra_memory: What it keeps beside full fine-tuning's memory, in words; empty where that is nothing, so that the
            prediction of a run's memory holds.
        precisions: Precisions that it can work with.
        check: Says in one line why it cannot work with an adapter, before anything is written; None where it always can.
        alone: Whether it works in one process only, not by several that share or shard a model.
    """

    name: str
    summary: str
    prepare: Callable[[Any, Settings, Any], dict[str, Any]] | None = None
    method: type[Method] = Method
    option: Option | None = None
    uses_alpha: bool = False
    probes: bool = False
    tunes_fully: bool = True
    whole_gradients: bool = False
    extra_memory: str = ""
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    check: Callable[[Any], None] | None = None
    alone: bool = False

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
