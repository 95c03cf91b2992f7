"""What the tests of all families need to know of each: which there are, and how the tiny model of a variant is tried out.

A variant without an entry in ``CASES`` is tried with the defaults of :class:`Case`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sff_fast
from sff_fast.adapters import Adapter


@dataclasses.dataclass(frozen=True)
class Case:
    """How a variant's tiny model is tried out on ETTh1.

    Args:
        context: Context length.
        horizon: Prediction length.
        lr: Learning rate of 20 Adam steps that lower the loss of held-out windows by 5 % and more.
        batch: Windows in a step.
        draws: How often the loss of the held-out windows is drawn; more than once where it is random.
        samples: Sample paths of a forecast, or None for a family that draws none.
        tolerance: Greatest difference of a forecast in float32 from the package's, on standardised data.
    """

    context: int = 96
    horizon: int = 24
    lr: float = 3e-3
    batch: int = 16
    draws: int = 1
    samples: int | None = None
    tolerance: float = 1e-5


CASES: dict[str, Case] = {
    "chronos-t5": Case(lr=4e-2, batch=8, samples=3),
    "sundial": Case(draws=4, samples=3),
    "moirai": Case(context=96, samples=4),
    "moirai-2": Case(context=96, horizon=80),
    "moirai-moe": Case(context=96, samples=4),
    "timer": Case(context=192),
    "ttm": Case(lr=1e-2),
}

FAST = ("chronos-bolt", "moment", "timer", "ttm", "units")
"""Variants whose tests run in `make test`; the others run in `make test-slow`."""


def case_of(variant: str) -> Case:
    """How a variant is tried out."""
    return CASES.get(variant, Case())


def shaken(variant: str, seed: int = 0) -> Adapter:
    """A tiny model that is off its initialisation everywhere, as a trained one is: constant draws hide differences."""
    adapter = sff_fast.tiny(variant, seed)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return adapter


def variants() -> dict[str, type[Adapter]]:
    """Variant to adapter class, sorted by name: every one that the package registers."""
    found = {info.adapter.variant: info.adapter for info in sff_fast.families().values()}
    return {name: found[name] for name in sorted(found) if found[name].__module__.startswith("sff_fast.")}


def marked(*, with_package: bool = False) -> list:
    """The names of all variants as parameters of a test, slow ones marked.

    Args:
        with_package: Only those that need a package.
    """
    names = [name for name, adapter in variants().items() if adapter.module or not with_package]
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow], id=name) for name in names]


def doing(task: str) -> list:
    """As :func:`marked`, of the variants that can do a task."""
    return [parameter for parameter in marked() if task in variants()[parameter.values[0]].tasks]


def is_installed(variant: str) -> bool:
    """Whether the package of a variant is there."""
    module = variants()[variant].module
    return module is None or importlib.util.find_spec(module.split(".")[0]) is not None


def require(variant: str) -> type[Adapter]:
    """The adapter class of a variant, or a skip where its package is not installed."""
    adapter = variants()[variant]
    if not is_installed(variant):
        pytest.skip(f"{adapter.package} is not installed: make models-env")
    return adapter


def script_of(variant: str) -> Path:
    """The program that opens a variant's checkpoints without sff_fast, or with it where the family has no package."""
    folder = Path(__file__).parent / "upstream"
    if variants()[variant].module is None:
        return folder / "ours.py"
    return folder / f"{variant.replace('-', '_').replace('.', '_')}.py"


def upstream(variant: str) -> ModuleType:
    """The script of a variant as a module, whose functions use the upstream package alone."""
    path = script_of(variant)
    if str(path.parent) not in sys.path:
        # At the end: a script may have the name of a package.
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"upstream_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
