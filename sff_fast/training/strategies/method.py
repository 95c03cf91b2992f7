"""What a strategy does beside the plain loop, at a few places of it; the plain strategies do nothing there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..config import Settings


class Method:
    """The places of the loop where a strategy may act; this one leaves all of them as they are.

    Args:
        adapter: The adapter; its model is prepared (smoothed, filled, or as it was) and on the run's device.
        settings: The settings.
        plan: The init plan that the caller gave, or None for the adapter's own.
        folder: Where the run keeps its state, for weights that need not lie in memory; None without an output folder.
    """

    def __init__(self, adapter: Any, settings: Settings, plan: Any = None, folder: Path | None = None) -> None:
        self.adapter = adapter
        self.settings = settings
        self.plan = plan
        self.folder = folder

    def attach(self, resumed: bool) -> None:
        """Take hold of the model, before the first evaluation, or before a saved state is put into the model.

        Args:
            resumed: Whether a state follows, so that files of the run's beginning count.
        """

    def passes(self, compute: Callable[[], float], step: int) -> float:
        """The forward and backward passes of one step, which leave gradients on the trained parameters.

        Args:
            compute: Does them for the step's batch, with the weights as they are; gradients are added to those that are there.
            step: Number of the step in the run, from 1 on.

        Returns:
            The batch's mean training loss.
        """
        return compute()

    def stepped(self) -> None:
        """Follow a step of the optimizer."""

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the model is what is evaluated and saved, in the family's structure, rather than what is trained."""
        return contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside weights and optimizer: JSON values and tensors, nested."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""

    def detach(self) -> None:
        """Leave the model in the family's structure; calling it again does nothing."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by their names in the model, tied ones once."""
        return {name: parameter for name, parameter in self.adapter.model.named_parameters() if parameter.requires_grad}


@contextlib.contextmanager
def replaced(parameters: dict[str, torch.nn.Parameter], kept: dict[str, torch.Tensor]) -> Iterator[None]:
    """Put the parameters back to the values in ``kept`` when the block ends, bit for bit, however it ends.

    Args:
        parameters: Name to parameter; the block may write them in place.
        kept: Receives copies of their values.
    """
    for name, parameter in parameters.items():
        kept[name] = parameter.detach().clone()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)
        kept.clear()
