"""One flat tensor: every distribution, dtype and instruction set, alignment, and many tensors against one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from models import ALPHA, DISTRIBUTIONS, Flat, Many, torch_draw
from timing import interleaved, row

import sff_fast
from sff_fast import table
from sff_fast.backends import cpu
from sff_fast.plan import InitPlan

# What must hold by (distribution, dtype): ours over the in-place scale, and torch over ours, for 1 and 2 threads.
SCALE = {
    ("constant", "float32"): {1: "<= 1.08", 2: "<= 1.06"},
    ("uniform", "float32"): {1: "<= 1.25", 2: "<= 1.12"},
    ("normal", "float32"): {1: "<= 1.75", 2: "<= 1.20"},
}
TORCH = {
    ("uniform", "float32"): {1: ">= 11", 2: ">= 16"},
    ("normal", "float32"): {1: ">= 10", 2: ">= 16"},
    ("uniform", "bfloat16"): {1: ">= 13", 2: ">= 24"},
    ("normal", "bfloat16"): {1: ">= 10", 2: ">= 18"},
    ("trunc_normal", "float32"): {1: ">= 50", 2: ">= 90"},
}
MANY = "1,285 tensors"
TORCH_AVX2 = {"uniform": {1: ">= 4.5", 2: ">= 8"}, "normal": {1: ">= 4", 2: ">= 7"}}


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """The kernels of one instruction set; the widest for an empty name."""
    before = os.environ.get("SFF_FAST_ISA")
    if isa:
        os.environ["SFF_FAST_ISA"] = isa
    try:
        yield
    finally:
        if isa:
            del os.environ["SFF_FAST_ISA"]
            if before is not None:
                os.environ["SFF_FAST_ISA"] = before


def runs_here(isa: str) -> bool:
    """Whether this machine has an instruction set."""
    try:
        cpu._cpu.isa(isa)
    except ValueError:
        return False
    return True


def _weights(elements: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(-0.1, 0.1, elements, dtype=torch.float32).to(dtype)


def _scale(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The in-place scale of a buffer: its bytes as float32, since torch computes rather than moves bytes for narrower types."""
    values = x.view(torch.float32)
    factor = 0.999 if x.dtype == torch.float32 else 1.0  # another factor would make anything of two narrow numbers
    return lambda: values.mul_(factor)


def check_against_reference(label: str, dtype: torch.dtype, rounding: str) -> None:
    """The compiled kernel against the definition, in the same run."""
    n = 100_003
    plan = Flat.plan(DISTRIBUTIONS[label], n, dtype)
    ours, expected = Flat(_weights(n, dtype)), Flat(_weights(n, dtype))
    sff_fast.smooth_(ours, plan, ALPHA, seed=1, rounding=rounding)
    sff_fast.smooth_(expected, plan, ALPHA, seed=1, rounding=rounding, backend="reference")
    assert torch.equal(ours.w, expected.w), "the kernel differs from the reference"


def flat(
    label: str, dtype: torch.dtype, elements: int, runs: int, threads: int, isa: str = "", rounding: str = "nearest"
) -> list:
    """One distribution on one flat parameter, against the in-place scale and torch's own generator.

    The limit runs beside ours in rounds of their own: a peer of a second a round would let the machine drift between them.
    """
    distribution, short = DISTRIBUTIONS[label], str(dtype).removeprefix("torch.")
    plan, model = Flat.plan(distribution, elements, dtype), Flat(_weights(elements, dtype))
    scratch = torch.empty(elements, dtype=dtype)

    def ours() -> None:
        sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads, rounding=rounding, again=True)

    def streaming() -> None:
        torch_draw(scratch, distribution)
        model.w.lerp_(scratch, 1 - ALPHA)

    with forced(isa):
        check_against_reference(label, dtype, rounding)
        near = interleaved({"limit": _scale(model.w), "ours": ours}, 2 * runs + 1)
        rows = []
        case = f"{label} {short}" + (" stochastic" if rounding != "nearest" else "")
        plain = rounding == "nearest"
        scale = SCALE.get((label, short), {}).get(threads, "") if plain and not isa else ""
        rows.append(row(case, near, "limit", elements, threads, scale, isa=isa))
        if label != "constant" and plain:
            seconds = interleaved({"ours": ours, "torch": streaming}, 2 if label == "trunc_normal" else runs)
            must = TORCH_AVX2[label].get(threads, "") if isa else TORCH.get((label, short), {}).get(threads, "")
            rows.append(row(case, seconds, "torch", elements, threads, must, isa=isa))
    return rows


def alignment(label: str, elements: int, runs: int, threads: int) -> list:
    """Data pointers at 16 and 48 modulo 64, as safetensors maps them, over the same memory as the aligned one."""
    memory = torch.zeros(elements + 32)
    start = -memory.data_ptr() % 64 // 4
    plan = Flat.plan(DISTRIBUTIONS[label], elements, torch.float32)
    views = {"aligned": 0, "at 16 mod 64": 4, "at 48 mod 64": 12}
    models = {name: Flat(memory[start + lead : start + lead + elements]) for name, lead in views.items()}
    for name, lead in views.items():
        assert models[name].w.data_ptr() % 64 == 4 * lead
    contenders = {
        name: lambda model=model: sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads, again=True)
        for name, model in models.items()
    }
    seconds = interleaved(contenders, 2 * runs + 1)
    return [
        row(f"{label} {name}", seconds, "aligned", elements, threads, "<= 1.05", ours=name) for name in views if name != "aligned"
    ]


def many(elements: int, runs: int, threads: int) -> list:
    """A model of 1,285 tensors, half of them under 4,096 elements, against one flat tensor of the same size.

    Both whole, from the checks to the report, and the kernels alone on tables that are laid already.
    """
    model, plan = Many(elements), sff_fast.trace(lambda: Many(elements))
    one, one_plan = Flat(torch.zeros(elements)), Flat.plan(DISTRIBUTIONS["uniform"], elements, torch.float32)
    laid, one_laid = _laid(model, plan), _laid(one, one_plan)
    seconds = interleaved(
        {
            "ours": lambda: sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads, again=True),
            "one tensor": lambda: sff_fast.smooth_(one, one_plan, ALPHA, seed=1, threads=threads, again=True),
            "kernels": lambda: cpu.run_packed(laid, threads),
            "one kernel": lambda: cpu.run_packed(one_laid, threads),
        },
        2 * runs + 1,
    )
    return [
        row(MANY, seconds, "one tensor", elements, threads, "<= 1.10"),
        row(MANY, seconds, "one kernel", elements, threads, "<= 1.10", ours="kernels"),
    ]


def _laid(model: torch.nn.Module, plan: InitPlan) -> np.ndarray:
    """The packed kernel table of a model."""
    pairs = [(plan[name], parameter, ALPHA, 1 - ALPHA) for name, parameter in model.named_parameters()]
    return table.pack(table.build(pairs, plan, seed=1))
