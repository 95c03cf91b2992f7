"""``ema``: what is evaluated and saved is an average of the weights over the steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ...distributed.weights import put
from .method import Method, replaced


class Average(Method):
    """After step t: ``average = decay * average + (1 - decay) * theta``, from theta after the first step on.

    With ``ema_decay=1`` every step counts the same (stochastic weight averaging): ``average += (theta - average) / t``.
    Training goes on from theta; validation, choice of the best epoch and the saved model are the average's.

    Takes one set of the trained weights in float32, and another one of the weights' own precision while it is evaluated, when
    there are no gradients and activations.

    Source: Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Izmailov et al., "Averaging
    weights leads to wider optima and better generalization", UAI 2018 (SWA). Default decay: 0.999, torch's.
    """

    def attach(self, resumed: bool) -> None:
        """Begin without an average."""
        self._count = 0
        self._average: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def stepped(self) -> None:
        """Average the weights of this step in."""
        self._count += 1
        decay = self.settings.ema_decay
        share = 1.0 / self._count if decay == 1 else 1.0 - decay
        for name, parameter in self.trained().items():
            if self._count == 1:
                self._average[name] = parameter.detach().to(torch.float32, copy=True)
            else:
                self._average[name].lerp_(parameter.detach().float(), share)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show the average in the model's place; before the first step the weights themselves."""
        parameters = self.trained() if self._count else {}
        with replaced(parameters, {}):
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(self._average[name])
            yield

    def state(self) -> dict[str, Any]:
        """Steps and average."""
        return {"steps": self._count, "average": dict(self._average)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take both over."""
        self._count = state["steps"]
        self._average = {}
        for name, parameter in self.trained().items() if self._count else ():
            self._average[name] = torch.empty_like(parameter, dtype=torch.float32, requires_grad=False)
            put(self._average[name], state["average"][name])
