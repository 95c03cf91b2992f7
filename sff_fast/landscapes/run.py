"""``landscape``: the loss around several weights of a model, and the curvature there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sff_fast import tasks
from sff_fast.data import AnomalyData, ForecastData
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.exhaustion import advised
from sff_fast.files import make_directory, read_json, write_json
from sff_fast.landscapes.centres import Centre, make_centres, weights_hash
from sff_fast.landscapes.curvature import NoHessian, curvature, packages
from sff_fast.landscapes.directions import Plane
from sff_fast.landscapes.objective import Objective, choose_windows
from sff_fast.landscapes.result import LandscapeResult, lowest, rise, verdict, write_csv
from sff_fast.landscapes.rows import Rows
from sff_fast.stream import STREAM_VERSION, check_seed
from sff_fast.training.config import resolve_device
from sff_fast.training.identity import check_identity, identity_of
from sff_fast.training.interrupts import Interrupted, StopRequest, stop_requests
from sff_fast.training.log import as_json
from sff_fast.training.output import alone_in_output, begin_output, check_output
from sff_fast.training.progress import Progress, Silent
from sff_fast.training.runtime import peak_memory, reset_peak_memory
from sff_fast.version import __version__

GRIDS = (5, 1001)
"""Fewest and most points along a direction; with fewer none would be nearby."""


@alone_in_output
@advised("try a smaller batch_size (--batch-size), or no Hessian (--no-hessian), which takes 14 copies of the weights")
def landscape(
    make_adapter: Callable[[], Any],
    data: ForecastData | AnomalyData,
    *,
    alpha: float | Mapping[str, float] | None = None,
    tuned: Sequence[str | Path] = (),
    grid: int = 21,
    span: float = 1.0,
    windows: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    hessian: bool = True,
    probes: int = 16,
    plan: Any = None,
    device: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> LandscapeResult:
    """The loss over two random, filter-normalised directions around the pre-trained, smoothed and fine-tuned weights.

    At each centre ``theta`` the model is moved to ``theta + a * d0 + b * d1`` for every (a, b) of a grid, in place, and the
    family's training loss for the task of the data is measured there on the same validation windows, of which hidden patches
    are those of every evaluation. d0 and d1 are normal numbers of the random
    stream, drawn anew at every point and never stored; each of their filters has the norm of the centre's filter
    (:func:`sff_fast.landscapes.filters.filters_of` says what a filter is). Biases and norms stay. One model is in memory at
    a time, with one copy of its weights on the host, from which they are restored bit for bit.

    Args:
        make_adapter: Loads the pre-trained model, such as ``lambda: sff_fast.load("ttm", path)``; called
            several times, never for two models at once.
        data: The windows of any task, whose loss is measured; those of the validation part are used.
        alpha: Share of the pre-trained weights in the smoothed ones, which are a centre of their own. Default None: the
            family's. 1: no such centre.
        tuned: Folders of fine-tuned models of the same architecture (a run's, or its ``model``), each a centre.
        grid: Points along each direction, odd, so that one is the centre. Default 21: 441 points a centre.
        span: The greatest coordinate: the grid reaches from -span to span. Default 1: as far as the filters are long.
        windows: Validation windows that the loss is the mean over, a seeded choice of them. Default 64.
        batch_size: Windows at a time. Default 64.
        seed: Seed of the directions, the choice of windows, the smoothing, and what a random loss draws. Default 0.
        hessian: Also measure the Hessian's greatest eigenvalue and trace at each centre. Default True. It takes about 14
            further float32 copies of the weights, and is left out, with the reason, for a model without second derivatives.
        probes: Random vectors for the trace. Default 16.
        plan: The init plan for the smoothing. Default: the family's own.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        out: Folder for ``metrics.json``, ``landscape.csv`` and what :func:`sff_fast.report.write_landscape` adds. Default
            None: nothing is written.
        resume: Continue the landscape in ``out``; rows of the grid that are there are not measured again.
        overwrite: Remove an earlier run in ``out`` first.
        progress: Told about every point and every product with the Hessian.

    Returns:
        The result.

    Raises:
        ArgumentError: A setting is not allowed, or the model cannot be moved.
        CheckpointError: ``resume`` was given, and ``out`` holds something else.
        ExhaustedError: There is not enough memory; the rows that were measured are kept.
        MissingPackageError: scipy or hessian-eigenthings is needed for the Hessian and not installed.
        OutputError: ``out`` cannot be used.
        PlanError: The model cannot be smoothed.

    Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018.
    """
    _check(make_adapter, grid, span, windows, batch_size, probes)
    seed = check_seed(seed)
    if hessian:
        packages()
    device = resolve_device(device)
    adapter = make_adapter()
    alpha = adapter.default_alpha if alpha is None else alpha
    centres = make_centres(make_adapter, adapter.variant, alpha, tuned, seed, plan)
    folder = None if out is None else check_output(out, resume, overwrite, adapter.source)
    told = {"family": adapter.family, "variant": adapter.variant, "model": adapter.config(), "data": data.describe()}
    del adapter
    gc.collect()
    settings = {
        "alpha": alpha,
        "tuned": [str(centre.source) for centre in centres if centre.source is not None],
        "grid": grid,
        "span": span,
        "windows": min(windows, len(data.val)),
        "batch_size": batch_size,
        "seed": seed,
        "hessian": hessian,
        "probes": probes if hessian else None,
        "device": device.partition(":")[0],
        "weights": _rehearse(centres, data, seed),
    }
    description = as_json({**told, "settings": settings})
    if folder is not None and resume and (folder / "metrics.json").exists():
        return _finished(folder, description)
    if folder is not None:
        begin_output(folder, overwrite)
        make_directory(folder / "state")
    rows = Rows(None if folder is None else folder / "state", identity_of(description))
    reset_peak_memory(device)
    with stop_requests() as stop:
        try:
            measured = [
                _measure(centre, data, settings, device, rows, stop, Silent() if progress is None else progress, place)
                for centre, place in zip(centres, _places(centres))
            ]
        except Interrupted:
            stop.leave()
            raise
        finally:
            rows.close()
    entries = [entry for entry, _ in measured]
    metrics = {
        "sff_fast": __version__,
        "stream_version": STREAM_VERSION,
        **description,
        "landscape": {"axis": _axis(grid, span), "centres": entries},
        "verdict": verdict(settings["windows"], span, entries),
        "seconds": sum(seconds for _, seconds in measured),
        "peak_bytes": peak_memory(device),
    }
    if folder is not None:
        write_csv(folder / "landscape.csv", metrics["landscape"]["axis"], entries)
        write_json(folder / "metrics.json", metrics)
    return LandscapeResult.of(metrics)


def _check(make_adapter: Any, grid: int, span: float, windows: int, batch_size: int, probes: int) -> None:
    if not callable(make_adapter):
        raise ArgumentError(
            "make_adapter must be a function that loads the model, such as lambda: sff_fast.load('timer', path), "
            f"got {type(make_adapter).__name__}"
        )
    for name, value in (("grid", grid), ("windows", windows), ("batch_size", batch_size), ("probes", probes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} must be an integer of at least 1, got {value!r}")
    if grid % 2 == 0 or not GRIDS[0] <= grid <= GRIDS[1]:
        raise ArgumentError(
            f"grid must be an odd number from {GRIDS[0]} to {GRIDS[1]}, so that one point is the centre, got {grid}"
        )
    if isinstance(span, bool) or not isinstance(span, (int, float)) or not 0 < span < float("inf"):
        raise ArgumentError(f"span must be a finite number above 0, got {span!r}")


def _axis(grid: int, span: float) -> list[float]:
    """Coordinates from -span to span, exactly symmetric, with exactly 0 in the middle."""
    half = grid // 2
    return [span * step / half for step in range(-half, half + 1)]


def _places(centres: Sequence[Centre]) -> list[str]:
    return [f"{centre.name} ({number + 1} of {len(centres)})" for number, centre in enumerate(centres)]


def _rehearse(centres: Sequence[Centre], data: ForecastData | AnomalyData, seed: int) -> dict[str, str]:
    """Load every model once, one after the other, so that what cannot work fails now, not hours later.

    Returns:
        The hash of each centre's weights, by name.
    """
    hashes = {}
    for centre in centres:
        adapter = centre.open()
        tasks.check(adapter, data)
        Plane(adapter.model, seed)
        hashes[centre.name] = weights_hash(adapter.model)
        del adapter
        gc.collect()
    return hashes


def _finished(folder: Path, description: Mapping[str, Any]) -> LandscapeResult:
    metrics = read_json(folder / "metrics.json", error=CheckpointError)
    if "landscape" not in metrics:
        raise CheckpointError(f"{str(folder)!r} holds a run, no landscape: choose another folder, or start anew (overwrite)")
    check_identity(folder, identity_of(metrics), identity_of(description))
    return LandscapeResult.of(metrics)


def _measure(
    centre: Centre,
    data: ForecastData | AnomalyData,
    settings: Mapping[str, Any],
    device: str,
    rows: Rows,
    stop: StopRequest,
    progress: Progress,
    place: str,
) -> tuple[dict[str, Any], float]:
    """The entry of one centre and the seconds that it took, over all resumes."""
    stop.check()
    adapter = centre.open()
    adapter.model.to(device)
    indices = choose_windows(len(data.val), settings["windows"], settings["seed"])
    objective = Objective(adapter, data, indices, settings["batch_size"], settings["seed"], stop)
    axis = _axis(settings["grid"], settings["span"])
    losses, seconds = _grid(centre.name, objective, axis, settings["seed"], rows, progress, place)
    entry: dict[str, Any] = {
        "name": centre.name,
        "strategy": centre.strategy,
        "alpha": centre.alpha,
        "seed": None if centre.alpha is None else settings["seed"],
        "source": None if centre.source is None else str(centre.source),
        "weights": settings["weights"][centre.name],
        "loss": losses[len(axis) // 2][len(axis) // 2],
        "losses": losses,
        "rise": rise(axis, losses),
        "lowest": lowest(axis, losses),
    }
    if settings["hessian"]:
        record = rows.get(centre.name, "hessian")
        if record is None:
            record = rows.put(centre.name, "hessian", **_hessian(objective, settings, progress, place))
        entry["hessian"] = record["value"]
        seconds += record["seconds"]
    # Adapter and plan refer to each other: without the collector the next model would be loaded beside this one.
    del adapter, objective
    gc.collect()
    return as_json(entry), seconds


def _grid(
    name: str, objective: Objective, axis: Sequence[float], seed: int, rows: Rows, progress: Progress, place: str
) -> tuple[list[list[float | None]], float]:
    """The losses around a centre, row by row, and the seconds that they took; rows that were kept are not measured."""
    missing = [number for number in range(len(axis)) if rows.get(name, str(number)) is None]
    progress.start(len(missing) * len(axis), f"landscape of {place}")
    try:
        if missing:
            with Plane(objective.adapter.model, seed) as plane:
                for number in missing:
                    began = time.perf_counter()
                    measured = []
                    for b in axis:
                        plane.move(axis[number], b)
                        measured.append(objective.value())
                        progress.update(1, stage=f"row {number + 1} of {len(axis)}", loss=measured[-1])
                    rows.put(name, str(number), losses=measured, seconds=time.perf_counter() - began)
    finally:
        progress.close()
    kept = [rows.get(name, str(number)) for number in range(len(axis))]
    return [record["losses"] for record in kept], sum(record["seconds"] for record in kept)


def _hessian(objective: Objective, settings: Mapping[str, Any], progress: Progress, place: str) -> dict[str, Any]:
    """The curvature, or why there is none, and the seconds that it took."""
    began = time.perf_counter()
    progress.start(settings["probes"] + 40, f"Hessian of {place}")
    try:
        value = curvature(
            objective,
            probes=settings["probes"],
            seed=settings["seed"],
            told=lambda n: progress.update(n, stage="Hessian"),
        ).to_json()
    except NoHessian as error:
        value = {"left_out": str(error)}
    finally:
        progress.close()
    return {"value": value, "seconds": time.perf_counter() - began}
