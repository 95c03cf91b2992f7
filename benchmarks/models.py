"""The models that the benchmarks smooth, and what their peers do to them."""

from __future__ import annotations

import torch
from torch import nn

import sff_fast
from sff_fast.models.timer import Timer, TimerConfig
from sff_fast.plan import InitPlan, ParameterPlan, Segment

ALPHA = 0.7
DISTRIBUTIONS = {
    "constant": sff_fast.Constant(1.0),
    "uniform": sff_fast.Uniform(-0.03, 0.03),
    "normal": sff_fast.Normal(0.0, 0.02),
    "trunc_normal": sff_fast.TruncNormal(0.0, 0.02, -0.04, 0.04),
}


class Flat(nn.Module):
    """One flat parameter over memory that is there."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values, requires_grad=False)

    @staticmethod
    def plan(distribution: sff_fast.Distribution, elements: int, dtype: torch.dtype) -> InitPlan:
        """One draw for all of it."""
        return InitPlan([ParameterPlan("w", (elements,), dtype, (Segment.whole(distribution, elements, "w"),))])


class Many(nn.Module):
    """1,285 uniform tensors, every other one with fewer than 4,096 elements, of a given total."""

    COUNT, SMALL = 1285, 4096

    def __init__(self, elements: int) -> None:
        super().__init__()
        small = [64 + 16 * (i % 252) for i in range(self.COUNT // 2 + 1)]  # 64 to 4,080
        large = self.COUNT - len(small)
        rest = elements - sum(small)
        sizes = [rest // large + (1 if i < rest % large else 0) for i in range(large)]
        mixed = [n for pair in zip(small, sizes) for n in pair] + small[large:]
        assert sum(mixed) == elements
        assert len(mixed) == self.COUNT
        self.tensors = nn.ParameterList(torch.empty(n).uniform_(-0.03, 0.03) for n in mixed)


class T5Block(nn.Module):
    """The parameters of one T5 layer: attention, cross-attention in a decoder, and a ReLU feed-forward."""

    def __init__(self, d_model: int, d_ff: int, attentions: int, buckets: int, factor: float) -> None:
        super().__init__()
        self.norms = nn.ParameterList(torch.ones(d_model) for _ in range(attentions + 1))
        self.attention = nn.ModuleList()
        for _ in range(attentions):
            layers = nn.ModuleDict({name: nn.Linear(d_model, d_model, bias=False) for name in "qkvo"})
            nn.init.normal_(layers["q"].weight, 0.0, factor * (d_model * 64) ** -0.5)
            for name in "kvo":
                nn.init.normal_(layers[name].weight, 0.0, factor * d_model**-0.5)
            self.attention.append(layers)
        self.wi, self.wo = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)
        nn.init.normal_(self.wi.weight, 0.0, factor * d_model**-0.5)
        nn.init.normal_(self.wo.weight, 0.0, factor * d_ff**-0.5)
        if buckets:
            self.bias = nn.Embedding(buckets, d_model // 64)
            nn.init.normal_(self.bias.weight, 0.0, factor * d_model**-0.5)


class ChronosBase(nn.Module):
    """Parameters of Chronos-T5-base by shape and distribution: 201 million, nearly all of them normal.

    As in transformers' T5, nn.Linear's own uniform draw comes first and is overwritten by the normal one.
    """

    def __init__(self) -> None:
        super().__init__()
        factor = 0.05
        self.shared = nn.Embedding(4096, 768)
        nn.init.normal_(self.shared.weight, 0.0, factor)
        self.encoder = nn.ModuleList(T5Block(768, 3072, 1, 32 if i == 0 else 0, factor) for i in range(12))
        self.decoder = nn.ModuleList(T5Block(768, 3072, 2, 32 if i == 0 else 0, factor) for i in range(12))
        self.norms = nn.ParameterList(torch.ones(768) for _ in range(2))


def timer() -> nn.Module:
    """Timer at its published size: 67 million parameters, nearly all of them uniform."""
    return Timer(TimerConfig())


FACTORIES = {"Timer-67M": timer, "Chronos-T5-base": ChronosBase}


def torch_draw(scratch: torch.Tensor, distribution: object) -> None:
    """The same distribution with torch's own generator."""
    if isinstance(distribution, sff_fast.Uniform):
        scratch.uniform_(distribution.low, distribution.high)
    elif isinstance(distribution, sff_fast.Normal):
        scratch.normal_(distribution.mean, distribution.std)
    elif isinstance(distribution, sff_fast.TruncNormal):
        nn.init.trunc_normal_(scratch, distribution.mean, distribution.std, distribution.a, distribution.b)
    else:
        scratch.fill_(distribution.value)


def interpolate_with(model: nn.Module, random_model: nn.Module) -> None:
    """What the reference does with its second model."""
    with torch.no_grad():
        for p, q in zip(model.parameters(), random_model.parameters()):
            p.copy_(ALPHA * p + (1 - ALPHA) * q)
