"""``mixout``: in every step a random part of each weight matrix is the pre-trained one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ... import backends
from ...distributions import Uniform
from ...plan import ParameterPlan, Segment
from ...stream import MASK, check_seed, rounding_key, stream_id
from ...table import Pair, build
from .anchor import Anchor
from .method import Method, replaced


class Mixout(Method):
    """Passes see ``(M * theta_pre + (1 - M) * theta - p * theta_pre) / (1 - p)``, M being 1 with probability p an element.

    The mask M of a step is the uniform draw of purpose ``mask`` with the step's key, below p; all micro-batches of a step
    share it. Gradients reach theta through ``(1 - M) / (1 - p)``. As in the authors' code only matrices (parameters of two
    dimensions or more) are mixed; evaluation sees theta itself, which is the mean over masks.

    Takes two sets of the matrices: the pre-trained ones (a mapped file in the run's ``state`` folder, or a copy on the host),
    and during the passes of a step the trained ones.

    Source: Lee, Cho, Kang, "Mixout: effective regularization to finetune large-scale pretrained language models", ICLR 2020,
    equation 5; p = 0.9 in most of its experiments on small data.
    """

    def attach(self, resumed: bool) -> None:
        """Keep the pre-trained matrices."""
        self._anchor = Anchor(self.folder)
        self._anchor.take(self._matrices(), resumed)

    def passes(self, compute: Callable[[], float], step: int) -> float:
        """Mix, compute, put the weights back and let the gradients through where they were not replaced."""
        p, parameters = self.settings.mixout_p, self._matrices()
        with replaced(parameters, {}):
            with torch.no_grad():
                for name, parameter in parameters.items():
                    start = self._anchor[name].to(parameter.device)
                    mixed = mix(parameter.detach().float(), start.float(), self._mask(name, parameter, step), p)
                    parameter.copy_(mixed)
            value = compute()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(self._mask(name, parameter, step), 0.0).mul_(1.0 / (1.0 - p))
        return value

    def state(self) -> dict[str, Any]:
        """What tells the file with the weights from another one."""
        return self._anchor.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Check that the file is the run's."""
        self._anchor.check(state)

    def _matrices(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.trained().items() if parameter.dim() > 1}

    def _mask(self, name: str, parameter: torch.Tensor, step: int) -> torch.Tensor:
        return draw_mask(name, parameter, self.settings.mixout_p, rounding_key(check_seed(self.settings.seed), step))


def mix(theta: torch.Tensor, start: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """The weights that the passes see: ``start`` where the mask holds, else theta moved away from it; their mean is theta."""
    return torch.where(mask, start, start + (theta - start) / (1.0 - p))


def draw_mask(name: str, like: torch.Tensor, p: float, key: int) -> torch.Tensor:
    """Where an element is replaced, each with probability p.

    Args:
        name: The parameter's name.
        like: A tensor of its shape, on its device.
        p: The probability, resolved to 2^-24.
        key: Key of the random stream: a step's.

    Returns:
        A boolean tensor of the shape.
    """
    uniform = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    whole = Segment(Uniform(0.0, 1.0), (like.numel(),), (1,), 0, name, (1,), 0)
    tasks = build([Pair(ParameterPlan(name, tuple(like.shape), torch.float32, (whole,)), uniform, 0.0, 1.0)], None, key)
    for task in tasks:
        task.stream = stream_id(name, MASK)
    if tasks:
        backends.choose("auto", like.device)[1](tasks, None)
    return uniform < p
