"""``max_memory``: which precision, states, passes and micro-batches a run takes so that it fits."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data import ForecastData
from ..errors import ArgumentError, CheckpointError
from ..files import read_json
from ..optim import default_optimizer, has_states
from ..resident import keep_few_kernels
from .config import EVAL_BATCH_SIZE, Settings
from .memory import Footprint, MemoryModel
from .recompute import can_recompute

CHOSEN = (
    "precision",
    "optimizer",
    "optimizer_state",
    "release_gradients",
    "activation_checkpointing",
    "micro_batch",
    "eval_batch_size",
)
"""What is chosen, unless it was given."""

COSTS = {
    "release_gradients": 0.01,
    "bfloat16": 0.02,
    "int8": 0.03,
    "halving": 0.04,
    "activation_checkpointing": 0.35,
    "bf16-sr": 0.5,
}
"""What each way of saving memory costs in time or rounding, to put them in order: the cheapest sum that fits is taken."""


def fit_settings(
    adapter: Any, data: ForecastData, settings: Settings, given: Mapping[str, Any], in_memory: bool, kept: int = 0
) -> tuple[Settings, Footprint]:
    """The settings of a run that keeps to ``settings.max_memory``, and the memory predicted for it.

    Args:
        adapter: The adapter. Its model may end in bfloat16, where nothing else fits.
        data: The windows.
        settings: The settings, with defaults where nothing was given.
        given: The arguments as the user gave them: what of :data:`CHOSEN` is not None is kept.
        in_memory: Whether the best weights are kept in memory.
        kept: Bytes of pre-trained weights that are kept on the host for further runs.

    Raises:
        ArgumentError: Nothing fits; the message says what the least is.
    """
    way, footprint = choose_settings(adapter, data, settings, given, in_memory, kept)
    logging.getLogger("sff_fast").warning(
        "max_memory %s: %s, %s predicted", size_text(settings.max_memory), way_text(way), size_text(footprint.peak)
    )
    return way, footprint


def choose_settings(
    adapter: Any, data: ForecastData, settings: Settings, given: Mapping[str, Any], in_memory: bool, kept: int = 0
) -> tuple[Settings, Footprint]:
    """As :func:`fit_settings`, without telling of it."""
    keep_few_kernels()
    fixed = {name for name in CHOSEN if given.get(name) is not None}
    least: tuple[Settings, Footprint] | None = None
    for precision, ways in itertools.groupby(_ways(adapter, settings, fixed), key=lambda way: way.precision):
        model = MemoryModel(adapter, data, dataclasses.replace(settings, precision=precision), in_memory, kept)
        for way in ways:
            way = _fit_evaluation(model, way, fixed)
            footprint = model.predict(way)
            if footprint.peak <= settings.max_memory:
                return way, footprint
            if least is None or footprint.peak < least[1].peak:
                least = way, footprint
    way, footprint = least
    raise ArgumentError(
        f"max_memory={size_text(settings.max_memory)} is too little: the least that this run can do with is "
        f"{size_text(footprint.peak)}, of which {size_text(footprint.process)} are the process and "
        f"{size_text(footprint.weights)} the weights ({way_text(way)})"
    )


def settle(
    adapter: Any,
    data: ForecastData,
    settings: Settings,
    given: Mapping[str, Any],
    folder: Path | None,
    overwrite: bool,
    kept: int = 0,
) -> tuple[Settings, dict[str, Any] | None]:
    """The settings of a run or comparison that keeps to its ``max_memory``, if it has one.

    A resumed run does not choose anew: its process may be larger by something that has nothing to do with the run.

    Args:
        adapter: The adapter.
        data: The windows.
        settings: The settings, with defaults where nothing was given.
        given: The arguments as the user gave them.
        folder: The output folder, or None.
        overwrite: Whether what is in the folder counts for nothing.
        kept: Bytes of pre-trained weights that are kept on the host for further runs.

    Returns:
        The settings, and what ``memory.json`` is to hold; None without a limit.

    Raises:
        ArgumentError: Nothing fits.
    """
    if settings.max_memory is None:
        return settings, None
    asked = {"max_memory": settings.max_memory, "given": {name: given.get(name) for name in CHOSEN}}
    path = None if folder is None or overwrite else folder / "memory.json"
    if path is not None and path.exists():
        noted = read_json(path, error=CheckpointError)
        if {name: noted.get(name) for name in asked} == asked and set(noted.get("chosen", ())) == set(CHOSEN):
            return dataclasses.replace(settings, **noted["chosen"]), noted
    chosen, footprint = fit_settings(adapter, data, settings, given, in_memory=folder is None, kept=kept)
    values = {name: getattr(chosen, name) for name in CHOSEN}
    return chosen, {**asked, "chosen": values, "predicted": footprint.to_json()}


def way_text(settings: Settings) -> str:
    """What was chosen, in words."""
    parts = [settings.precision, f"optimizer {settings.optimizer}"]
    if has_states(settings.optimizer):
        parts.append(f"{settings.optimizer_state or 'float32'} states")
    if settings.release_gradients:
        parts.append("released gradients")
    if settings.activation_checkpointing:
        parts.append("activation checkpointing")
    parts.append(f"micro-batches of {settings.micro_batch}")
    parts.append(f"evaluation of {settings.eval_batch_size} windows at a time")
    return ", ".join(parts)


def size_text(size: int) -> str:
    """Bytes in the largest unit that leaves a number of at least one, powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError


def _ways(adapter: Any, settings: Settings, fixed: set[str]) -> Iterator[Settings]:
    """All settings that may be chosen, cheapest first, those of one precision together."""

    def choices(name: str, others: list[Any]) -> list[Any]:
        own = getattr(settings, name)
        return [own] if name in fixed else [own, *(other for other in others if other != own)]

    ours = "optimizer" not in fixed or has_states(settings.optimizer)
    precisions = choices("precision", ["bf16-sr"] if ours else [])
    states = choices("optimizer_state", ["bfloat16", "int8"] if ours else [])
    releases = choices("release_gradients", [True] if ours else [])
    recomputes = choices("activation_checkpointing", [True] if can_recompute(adapter) else [])
    halves = []
    while settings.batch_size >> (len(halves) + 1):
        halves.append(-(-settings.batch_size >> (len(halves) + 1)))
    micros = choices("micro_batch", halves)
    found = []
    for precision, state, release, recompute, micro in itertools.product(precisions, states, releases, recomputes, micros):
        if release and micro < settings.batch_size and "release_gradients" not in fixed:
            continue  # accumulated gradients are whole: releasing them saves nothing
        cost = COSTS["halving"] * micros.index(micro) + COSTS["activation_checkpointing"] * (recompute and len(recomputes) > 1)
        cost += COSTS["release_gradients"] * release + COSTS.get(state, 0.0) + COSTS.get(precision, 0.0)
        needs_ours = release or state is not None or precision == "bf16-sr"
        optimizer = settings.optimizer if "optimizer" in fixed else default_optimizer(needs_ours)
        way = dataclasses.replace(
            settings,
            precision=precision,
            optimizer=optimizer,
            optimizer_state=state,
            release_gradients=release,
            activation_checkpointing=recompute,
            micro_batch=micro,
        )
        found.append((precisions.index(precision), cost, len(found), way))
    return (way for *_, way in sorted(found, key=lambda entry: entry[:3]))


def _fit_evaluation(model: MemoryModel, way: Settings, fixed: set[str]) -> Settings:
    """The largest evaluation batch that fits, for families whose forecasts of many windows need more than training."""
    if "eval_batch_size" in fixed:
        return way
    size = EVAL_BATCH_SIZE
    while size > 1:
        footprint = model.predict(dataclasses.replace(way, eval_batch_size=size))
        if footprint.evaluating <= way.max_memory:
            break
        size //= 2
    return dataclasses.replace(way, eval_batch_size=size)
