"""``sam``: the gradient of a step is taken a little uphill."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...optim.replay import replayed_generators
from .method import Method, replaced


class SharpnessAware(Method):
    """The gradient at ``theta + rho * g / |g|``, where g is the gradient at theta, all parameters together.

    Two passes a step, both with the same dropout; the loss that is reported is the first one's. Buffers are left as the first
    pass leaves them. Takes one set of the trained weights during the second pass, so that they are back bit for bit.

    Source: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-aware minimization for efficiently improving generalization",
    ICLR 2021, equations 2 and 3 (p = 2), rho = 0.05.
    """

    def passes(self, compute: Callable[[], float], step: int) -> float:
        """Climb, take the gradient there, and put the weights back."""
        parameters = self.trained()
        with replayed_generators({parameter.device for parameter in parameters.values()}):
            value = compute()
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]).double())
        buffers = {name: buffer.detach().clone() for name, buffer in self.adapter.model.named_buffers()}
        with replaced(parameters, {}):
            with torch.no_grad():
                for name, gradient in gradients.items():
                    parameters[name].add_(gradient * (self.settings.sam_rho / (norm + 1e-12)).to(gradient.dtype))
            for parameter in parameters.values():
                parameter.grad = None
            compute()
        for name, buffer in self.adapter.model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        return value
