"""``l2-sp`` and ``l2-init``: the loss has a penalty on the distance to where the weights came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ... import backends
from ...names import named_parameters
from ...stream import check_seed
from ...table import Pair, build
from .anchor import Anchor
from .method import Method


class L2Start(Method):
    """``loss + penalty / 2 * |theta - theta_pre|^2``: gradients get ``penalty * (theta - theta_pre)``.

    Takes one set of the trained weights: a mapped file in the run's ``state`` folder, or a copy on the host.
    The penalty is added once a step, before the gradients are clipped.

    Source: Li, Grandvalet, Davoine, "Explicit inductive bias for transfer learning with convolutional networks", ICML 2018,
    equation 2 (L2-SP; every weight here has a pre-trained value, so that the second term, for new layers, is empty).
    """

    def attach(self, resumed: bool) -> None:
        """Keep the weights."""
        self._anchor = Anchor(self.folder)
        self._anchor.take(self.trained(), resumed)

    def passes(self, compute: Callable[[], float], step: int) -> float:
        """Add the penalty's gradient."""
        value = compute()
        with torch.no_grad():
            for name, parameter in self.trained().items():
                if parameter.grad is not None:
                    start = self._anchor[name].to(parameter.device)
                    distance = parameter.float() - start.float()
                    parameter.grad.add_(distance.to(parameter.dtype), alpha=self.settings.penalty)
        return value

    def state(self) -> dict[str, Any]:
        """What tells the file with the weights from another one."""
        return self._anchor.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Check that the file is the run's."""
        self._anchor.check(state)


class L2Init(Method):
    """``loss + penalty * |theta - theta_rand|^2``: gradients get ``2 * penalty * (theta - theta_rand)``.

    theta_rand is the random initialisation of the run's seed. The kernel draws it again in every step, straight onto
    the gradients (``grad = fma(1, grad, -2 * penalty * draw)``): no copy of it is kept, and no scratch memory taken.
    The penalty is added once a step, before the gradients are clipped.

    Source: Kumar, Marklund, Van Roy, "Maintaining plasticity in continual learning via regenerative regularization",
    CoLLAs 2025 (arXiv:2308.11958), equation 1 (L2 Init).
    """

    def attach(self, resumed: bool) -> None:
        """Check the plan before anything is trained."""
        self._init = self.adapter.plan() if self.plan is None else self.plan
        everything = named_parameters(self.adapter.model)
        self._parameters = {name: parameter for name, parameter in everything.items() if parameter.requires_grad}
        self._init.check(self._parameters, others=everything)
        self._seed = check_seed(self.settings.seed)

    def passes(self, compute: Callable[[], float], step: int) -> float:
        """Add the penalty's gradient."""
        value, factor = compute(), 2.0 * self.settings.penalty
        pairs: dict[torch.device, list[Pair]] = {}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=factor)
                pairs.setdefault(parameter.device, []).append(Pair(self._init[name], parameter.grad, 1.0, -factor))
        for device, some in pairs.items():
            backends.choose("auto", device)[1](build(some, self._init, self._seed), None)
        return value
