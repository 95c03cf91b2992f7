"""What is to be done to a checkpoint: checked as a whole before anything is written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sff_fast import files
from sff_fast.checkpoints.chunks import Recipe
from sff_fast.checkpoints.header import FLOATS, Entry, Header
from sff_fast.checkpoints.layout import Layout
from sff_fast.errors import ArgumentError, CheckpointError, PlanError
from sff_fast.factors import Factors, match_factors
from sff_fast.plan import InitPlan
from sff_fast.stream import STREAM_VERSION
from sff_fast.version import __version__

KEY = "sff_fast"
"""Key in a file's metadata under which it says how it was smoothed."""
SIDECAR = "sff_fast.json"
"""File beside the weights in a folder that says the same."""


@dataclass(frozen=True)
class Work:
    """A checkpoint, and what becomes of its tensors.

    Args:
        layout: Its files.
        plan: How its parameters are drawn.
        recipes: Name of a tensor in the files to what becomes of it.
        unknown: Floating-point tensors that the plan does not have; they are copied as they are (buffers).
        record: What is said of the result: seed, stream version, plan, factors, rounding.
    """

    layout: Layout
    plan: InitPlan
    recipes: Mapping[str, Recipe]
    unknown: tuple[str, ...]
    record: dict[str, Any]


def prepare(
    layout: Layout, plan: InitPlan, factors: Factors, seed: int, rounding: str, prefix: str, subset: bool, again: bool
) -> Work:
    """Lay a plan over a checkpoint.

    Args:
        layout: The checkpoint.
        plan: The plan.
        factors: What to keep and what to draw, by patterns over the plan's names.
        seed: Seed of the random stream, checked.
        rounding: ``"nearest"`` or ``"stochastic"``.
        prefix: What the plan's names begin with before the files' names.
        subset: Whether the plan may have parameters that the files lack.
        again: Whether a checkpoint that says it was smoothed may be smoothed again.

    Raises:
        PlanError: Names, shapes or dtypes do not fit.
        ArgumentError: A pattern matches nothing, or the checkpoint was smoothed before.
        CheckpointError: What it says of earlier smoothing cannot be read.
    """
    earlier = smoothing_of_files(layout)
    if earlier and not again:
        raise ArgumentError(
            f"{str(layout.source)!r} was smoothed before (seed {earlier[-1]['seed']}, plan {earlier[-1]['plan_hash'][:12]}): "
            "take the pre-trained checkpoint, or pass again=True (--again)"
        )
    entries = {entry.name: entry for shard in layout.shards for entry in shard.entries}
    known = {name: plan[prefix + name].name for name in entries if prefix + name in plan}
    unknown = tuple(name for name, entry in entries.items() if name not in known and entry.dtype in FLOATS)
    _check(entries, known, unknown, plan, subset, prefix)
    names = list(dict.fromkeys(known.values()))
    matched = match_factors(names, factors)
    recipes = {
        name: Recipe(plan[parameter], *matched[parameter])
        for name, parameter in known.items()
        if parameter in matched and matched[parameter] != (1.0, 0.0)
    }
    record = {
        "seed": seed,
        "stream_version": STREAM_VERSION,
        "plan_hash": plan.hash,
        "factors": [list(factor) for factor in factors],
        "rounding": rounding,
        "prefix": prefix,
        "tensors": len(recipes),
        "elements": sum(entries[name].numel for name in recipes),
    }
    return Work(layout, plan, recipes, unknown, {KEY: __version__, "smoothing": [*earlier, record]})


def smoothing_of_files(layout: Layout) -> list[dict[str, Any]]:
    """The records of earlier smoothing that a checkpoint carries; the longest list where files differ.

    Raises:
        CheckpointError: There is something under that name that is no such record.
    """
    found = [records_of(shard) for shard in layout.shards]
    if layout.is_folder:
        found.append(read_records(layout.source / SIDECAR))
    return max(found, key=len)


def records_of(shard: Header) -> list[dict[str, Any]]:
    """The records that one file of weights carries: in its metadata, or beside it.

    Raises:
        CheckpointError: There is something under that name that is no such record.
    """
    return max(_checked(_parsed(shard), shard.path), read_records(sidecar_of(shard.path)), key=len)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a file beside weights; none where there is no such file.

    Raises:
        CheckpointError: The file holds something else.
    """
    return _checked(files.read_json(path, CheckpointError), path) if path.is_file() else []


def _checked(content: Any, path: Path) -> list[dict[str, Any]]:
    records = content.get("smoothing") if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(one, dict) and {"seed", "plan_hash"} <= set(one) for one in records):
        raise CheckpointError(f"{str(path)!r} does not say how the model was smoothed: remove that to use the weights without")
    return records


def sidecar_of(file: Path) -> Path:
    """Where a single file's record lies when its header has no room for it."""
    return file.with_name(f"{file.name}.{SIDECAR}")


def _parsed(shard: Header) -> Any:
    try:
        return json.loads(shard.metadata.get(KEY, '{"smoothing": []}'))
    except ValueError as error:
        raise CheckpointError(f"{str(shard.path)!r} has metadata under {KEY!r} that is no JSON: replace the file") from error


def _check(
    entries: Mapping[str, Entry], known: Mapping[str, str], unknown: tuple[str, ...], plan: InitPlan, subset: bool, prefix: str
) -> None:
    problems = []
    for name, parameter in known.items():
        entry, expected = entries[name], plan[parameter].shape
        if entry.shape != tuple(expected):
            problems.append(f"{name!r} has shape {entry.shape}, the plan has {tuple(expected)}")
        elif entry.dtype not in FLOATS:
            problems.append(f"{name!r} is stored as {entry.dtype}, which cannot be smoothed: expected one of {', '.join(FLOATS)}")
    missing = [name for name in plan if name not in set(known.values())]
    if missing and not subset:
        hint = f"; the files have {unknown[0]!r}: name the difference by prefix=" if unknown and not known else ""
        problems += [f"{name!r} is missing in the files" for name in missing]
        problems[-1] += f" (subset=True allows a part of a model{hint})"
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise PlanError(f"the plan does not fit the checkpoint ({len(problems)} difference{'s'[: len(problems) > 1]}): {shown}")
    if unknown:
        first = ", ".join(map(repr, unknown[:3])) + (", …" if len(unknown) > 3 else "")
        warnings.warn(
            f"{len(unknown)} tensor{'s'[: len(unknown) > 1]} of the checkpoint that the plan does not have "
            f"{'are' if len(unknown) > 1 else 'is'} copied unchanged: {first}",
            stacklevel=4,
        )
