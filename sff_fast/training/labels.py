"""How runs are called in tables, comparisons and file names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

ZERO_SHOT = "zero-shot"


def alpha_text(alpha: float | Mapping[str, float] | None) -> str:
    """Alpha in a file name: ``-alpha0.7``, eight hex digits of a mapping's hash, or nothing."""
    if alpha is None:
        return ""
    if isinstance(alpha, Mapping):
        return f"-alpha{hashlib.sha256(json.dumps(dict(alpha)).encode()).hexdigest()[:8]}"
    return f"-alpha{alpha!r}"


def label_runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each run in summary and comparisons: its strategy, with alpha where that strategy had several."""
    alphas: dict[str, set[str]] = {}
    for run in runs:
        alphas.setdefault(run["strategy"], set()).add(alpha_text(run["alpha"]))
    return [run["strategy"] + (alpha_text(run["alpha"]) if len(alphas[run["strategy"]]) > 1 else "") for run in runs]


def plain_name(run: Mapping[str, Any]) -> str:
    """A run's strategy in a sentence: ``sff (alpha 0.7)``."""
    alpha = run["alpha"]
    if alpha is None:
        return run["strategy"]
    return f"{run['strategy']} (alpha {'by name' if isinstance(alpha, Mapping) else f'{alpha:g}'})"
