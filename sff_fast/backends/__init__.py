"""Compute backends: where each one is there, and which one runs a parameter.

``cpu`` and ``cuda`` are compiled modules, ``reference`` is plain torch on any device; all give the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch

from sff_fast.backends import cpu, cuda, reference
from sff_fast.errors import ArgumentError, BackendError
from sff_fast.table import BoxTask

NAMES = ("auto", "cpu", "cuda", "reference")
_said: set[str] = set()


def available_backends() -> dict[str, str]:
    """Which backends this installation has.

    Returns:
        For each backend what it runs on (``"avx512"``, ``"sm_90, 1 GPU"``, ``"ok"``), or ``"absent: "`` and the reason.
    """
    why, why_no_cuda = cpu.why_absent(), cuda.why_absent()
    return {
        "cpu": f"absent: {why}" if why else cpu.isa(),
        "cuda": f"absent: {why_no_cuda}" if why_no_cuda else cuda.describe(),
        "reference": "ok",
    }


def check(name: str) -> None:
    """Refuse a backend that does not exist or is not there.

    Raises:
        ArgumentError: There is no such backend.
        BackendError: It is not there; the message says what to do.
    """
    if name not in NAMES:
        raise ArgumentError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    why = {"cpu": cpu.why_absent, "cuda": cuda.why_absent}.get(name, str)()
    if why:
        raise BackendError(f"backend={name!r} is absent: {why}")


def choose(name: str, device: torch.device) -> tuple[str, Callable[[Sequence[BoxTask], int | None], int]]:
    """The backend that runs parameters of a device.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"reference"``.
        device: Where the parameters lie.

    Returns:
        The chosen backend's name and its ``run(tasks, threads)``.

    Raises:
        ArgumentError: There is no such backend.
        BackendError: It is not there, or does not run on this device.
    """
    check(name)
    if name == "cpu" and device.type != "cpu":
        raise BackendError(f"backend='cpu' runs parameters on the CPU, got one on {device}: use backend='auto'")
    if name == "cpu" or (name == "auto" and device.type == "cpu" and not cpu.why_absent()):
        return "cpu", cpu.run
    if name == "cuda" and device.type != "cuda":
        raise BackendError(f"backend='cuda' runs parameters on a GPU, got one on {device}: use backend='auto'")
    if name == "cuda" or (name == "auto" and device.type == "cuda" and not cuda.why_absent()):
        cuda.check_device(device)
        return "cuda", cuda.run
    if name == "auto":
        why = cpu.why_absent() if device.type == "cpu" else cuda.why_absent() if device.type == "cuda" else "it has no kernels"
        _say_once(f"{device.type}: using the slow reference backend, since the compiled one is absent ({why})")
    return "reference", reference.run


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(f"sff_fast: {message}", RuntimeWarning, stacklevel=4)
