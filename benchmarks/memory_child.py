"""What benchmarks/bench_memory.py runs in fresh processes; prints one line of JSON.

``memory_child.py CASE WAY STEPS [LAYERS]`` with the ways

* usual: float32, a second model for SFF, torch's AdamW;
* ours: bfloat16 from the start, SFF in place, FusedAdamW with int8 states, stochastic rounding and released gradients;
* usual-passes, ours-passes: the same forward and backward passes, each gradient freed at once, no SFF, no optimizer.
"""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch

import sff_fast
from sff_fast import optim, smooth, tracing  # noqa: F401  (the imports that a first call would make)
from sff_fast.adapters import Adapter
from sff_fast.adapters.chronos_t5 import ChronosT5Adapter
from sff_fast.adapters.moirai_moe import MoiraiMoEAdapter
from sff_fast.data import Batch
from sff_fast.resident import keep_few_kernels

ALPHA = 0.7
RATE = 1e-3
WINDOWS = {"chronos": (2, 64, 16), "moirai": (64, 128, 16)}
"""Windows in the batch, and steps of context and horizon: few for a short pass, enough for a mixture's experts to be chosen."""


class ChronosT5Large(ChronosT5Adapter):
    """The published sizes of amazon/chronos-t5-large."""

    sizes: ClassVar[dict[str, int]] = {
        "d_model": 1024,
        "d_kv": 64,
        "d_ff": 4096,
        "num_layers": 24,
        "num_decoder_layers": 24,
        "num_heads": 16,
    }

    @classmethod
    def _tiny_config(cls) -> dict[str, object]:
        config = copy.deepcopy(super()._tiny_config())
        config["chronos_config"]["n_tokens"] = 4096
        return {**config, "vocab_size": 4096, "pad_token_id": 0, "eos_token_id": 1, **cls.sizes}


class ChronosT5FourBillion(ChronosT5Large):
    """The same class with wider and more layers: 4.0 billion parameters."""

    sizes: ClassVar[dict[str, int]] = {
        "d_model": 2048,
        "d_kv": 64,
        "d_ff": 8192,
        "num_layers": 34,
        "num_decoder_layers": 34,
        "num_heads": 32,
    }


class MoiraiMoEBase(MoiraiMoEAdapter):
    """The published sizes of Salesforce/moirai-moe-1.0-R-base."""

    _tiny: ClassVar[dict[str, object]] = {**MoiraiMoEAdapter._tiny, "d_model": 768, "d_ff": 1024, "num_layers": 12}


CASES: dict[str, type[Adapter]] = {
    "chronos-t5-large": ChronosT5Large,
    "moirai-moe-base": MoiraiMoEBase,
    "chronos-t5-4b": ChronosT5FourBillion,
    "chronos-t5-tiny": ChronosT5Adapter,
    "moirai-moe-tiny": MoiraiMoEAdapter,
}


def status(field: str) -> int:
    """A field of this process's status in bytes, such as VmHWM or VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build models in a dtype, so that there never is a float32 copy."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def batch(windows: int, context: int, horizon: int) -> Batch:
    """Noisy waves, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(context + horizon, dtype=torch.float32)
    phases = torch.rand(windows, 1, generator=generator) * 6
    values = torch.sin(t / 7 + phases) + 0.1 * torch.randn(windows, len(t), generator=generator)
    return Batch(values[:, :context, None], values[:, context:, None], torch.arange(windows))


def free(parameter: torch.Tensor) -> None:
    """A hook that lets go of a gradient as soon as it is there."""
    parameter.grad = None


def main(case: str, way: str, steps: int, layers: int | None) -> dict[str, object]:
    """Build, smooth and train in one of the ways."""
    make = CASES[case]
    if layers is not None:
        make.sizes = {**make.sizes, "num_layers": layers, "num_decoder_layers": layers}
    dtype = torch.bfloat16 if way.startswith("ours") else torch.float32
    # Imports that would come later: of the family's packages, and of torch._dynamo by the first optimizer.
    (ChronosT5Adapter if issubclass(make, ChronosT5Adapter) else MoiraiMoEAdapter).tiny()
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    if way.startswith("ours"):
        keep_few_kernels()  # what releasing gradients does, in the passes without an optimizer too
    imports = status("VmRSS")
    begin = time.perf_counter()
    with default_dtype(dtype):
        adapter = make.tiny()
        model = adapter.model
        if way == "ours":
            smoothed = sff_fast.smooth_(model, adapter.plan(), ALPHA, seed=0)
            assert smoothed is not None
        elif way == "usual":
            second = make.tiny(seed=1).model
            with torch.no_grad():
                for p, q in zip(model.parameters(), second.parameters()):
                    p.mul_(ALPHA).add_(q, alpha=1 - ALPHA)
            del second
    built = time.perf_counter() - begin
    optimizer = None
    if way == "ours":
        optimizer = sff_fast.FusedAdamW(
            model.named_parameters(), lr=RATE, state_dtype="int8", stochastic_rounding=True, release_gradients=True
        )
    elif way == "usual":
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    else:
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(free)
    windows, losses = batch(*WINDOWS[adapter.family]), []
    model.train()
    begin = time.perf_counter()
    for step in range(steps):
        torch.manual_seed(step)
        loss = adapter.loss(windows)
        losses.append(loss.item())
        loss.backward()
        del loss
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    tensors = [*model.parameters(), *model.buffers()]
    trained = sum(p.numel() for p in model.parameters() if optimizer is not None and optimizer.state.get(p))
    return {
        "imports": imports,
        "weights": sum(t.numel() * t.element_size() for t in tensors),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": trained,
        "peak": status("VmHWM"),
        "losses": losses,
        "build_seconds": round(built, 1),
        "step_seconds": round((time.perf_counter() - begin) / steps, 2),
        "faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
    }


if __name__ == "__main__":
    case, way, steps, *rest = sys.argv[1:]
    print(json.dumps(main(case, way, int(steps), int(rest[0]) if rest else None)))
