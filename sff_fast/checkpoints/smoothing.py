"""Smoothing checkpoints on disk, a bucket at a time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sff_fast import backends, files
from sff_fast.checkpoints import journal
from sff_fast.checkpoints.chunks import Smoother, cut
from sff_fast.checkpoints.header import Header
from sff_fast.checkpoints.layout import Layout, read_layout
from sff_fast.checkpoints.overwrite import overwrite_files
from sff_fast.checkpoints.pipeline import Digest, read_exactly, transform
from sff_fast.checkpoints.work import KEY, SIDECAR, Work, prepare
from sff_fast.errors import ArgumentError, CheckpointError, OutputError
from sff_fast.factors import parse_factors
from sff_fast.plan import InitPlan
from sff_fast.smooth import ROUNDINGS
from sff_fast.stream import check_seed

_NO_HASH = "0" * 64
_SPARE = 1 << 20
"""Bytes of disk for each file beside its data: header, folder, record."""


class Progress(Protocol):
    """What is told how far the work is."""

    def start(self, total: int, label: str) -> None:
        """``total`` bytes are to be done."""

    def update(self, n: int) -> None:
        """``n`` more bytes are done."""

    def close(self) -> None:
        """The work ended."""


@dataclass(frozen=True)
class CheckpointReport:
    """What :func:`smooth_checkpoint` did.

    Attributes:
        source: The checkpoint that was read.
        target: Where the result is; the same for smoothing in place.
        record: What the result says of itself: seed, stream version, plan hash, factors, rounding, and with hashes their
            values by file.
        files: Names of the files of weights.
        unknown: Floating-point tensors that the plan does not have, copied unchanged.
        left_out: Files of the folder with weights in another form, which were not copied.
        backend: The backend that ran.
        threads: Threads that took part.
        bytes: Bytes of weights that were read.
        seconds: Wall time.
        hash_seconds: Time that hashing took, beside the rest where there are cores for it.
        resumed: Whether an interrupted smoothing in place was finished.
    """

    source: str
    target: str
    record: dict[str, Any]
    files: tuple[str, ...]
    unknown: tuple[str, ...]
    left_out: tuple[str, ...]
    backend: str
    threads: int
    bytes: int
    seconds: float
    hash_seconds: float
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return dict(vars(self))


def smooth_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    plan: InitPlan | Callable[[], nn.Module],
    alpha: float | Mapping[str, float] | None = None,
    seed: int = 0,
    *,
    shrink: float | Mapping[str, float] | None = None,
    perturb: float | Mapping[str, float] | None = None,
    rounding: str = "nearest",
    threads: int | None = None,
    prefix: str = "",
    subset: bool = False,
    again: bool = False,
    overwrite: bool = False,
    in_place: bool = False,
    hashes: bool = True,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Smooth a checkpoint on disk: safetensors in, the same layout out, without ever loading it.

    The result has the bits that :func:`sff_fast.smooth_` gives to the loaded model. Memory for data is 32 MiB, whatever the
    sizes of the checkpoint and of its tensors. The output appears under its name only when it is complete, flushed to the
    disk; the input is not changed. Other files of a folder (configuration, tokenizer) are copied, weights in other formats are
    not. Tensors that the plan does not have (buffers) are copied unchanged, said once by a warning.

    Args:
        src: A safetensors file, or a Hugging Face folder with ``model.safetensors`` or an index of several files.
        dst: The file or folder to make, as ``src`` is one; None with ``in_place``.
        plan: An :class:`InitPlan`, or a constructor without arguments to trace.
        alpha: As for :func:`sff_fast.smooth_`, patterns match the plan's names. Default 0.7.
        seed: Seed of the random stream, default 0.
        shrink: As for :func:`sff_fast.smooth_`.
        perturb: As for :func:`sff_fast.smooth_`.
        rounding: ``"nearest"`` or ``"stochastic"`` for bfloat16 and float16.
        threads: CPU threads, default ``torch.get_num_threads()``.
        prefix: What the plan's names begin with before the files' names.
        subset: Allow plan entries that the files lack, default False.
        again: Allow a checkpoint that was smoothed before.
        overwrite: Whether ``dst`` may be replaced.
        in_place: Overwrite ``src``, through a journal: after a crash or kill at any moment the same call finishes the work,
            and until then loading the checkpoint is refused.
        hashes: Whether the record holds the SHA-256 of every file as read and of its data as written, default True.
        progress: Told of the bytes that are done.

    Returns:
        A :class:`CheckpointReport`; its record is in the metadata of every file that was made, and in ``sff_fast.json`` in a
        folder (for one file in place: ``NAME.sff_fast.json``).

    Raises:
        ArgumentError: An argument is out of range, or the checkpoint was smoothed before.
        CheckpointError: The checkpoint cannot be read, is damaged, or another smoothing in place was interrupted.
        PlanError: The plan does not fit the checkpoint.
        OutputError: There is not enough disk space, or the output cannot be written.
        BackendError: The kernels cannot be used.
    """
    begin = time.perf_counter()
    key = check_seed(seed)
    factors = parse_factors(alpha, shrink, perturb)
    if rounding not in ROUNDINGS:
        raise ArgumentError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ArgumentError(f"threads must be an integer of at least 1, got {threads!r}")
    if in_place == (dst is not None):
        raise ArgumentError("give dst, or in_place=True and dst=None" if dst is None else "in_place=True takes no dst: pass None")
    layout = read_layout(src)
    if in_place and layout.is_folder:
        _check_own_files(layout)
    pending = journal.load(journal.journal_of(layout.source))
    if pending is not None and not in_place:
        raise CheckpointError(journal.interrupted(layout.source))
    target = layout.source if dst is None else _target(layout, dst, overwrite)
    if not isinstance(plan, InitPlan):
        from sff_fast.tracing import trace

        plan = trace(plan)
    work = prepare(layout, plan, factors, key, rounding, prefix, subset, again or pending is not None)
    name, run = backends.choose("auto", torch.device("cpu"))
    smoother = Smoother(work.recipes, plan, key, rounding, run, threads)
    total = sum(shard.size - shard.data for shard in layout.shards)
    if progress is not None:
        progress.start(total, "smoothing in place" if in_place else "smoothing")
    advance = progress.update if progress is not None else lambda n: None
    try:
        if in_place:
            record, hash_seconds = overwrite_files(work, smoother, pending, hashes, advance)
        else:
            if layout.is_folder:
                record, hash_seconds = _make_folder(work, target, smoother, hashes, overwrite, advance)
            else:
                record, hash_seconds = _write(work, layout.shards[0], target, smoother, hashes, advance)
    finally:
        if progress is not None:
            progress.close()
    return CheckpointReport(
        source=str(layout.source),
        target=str(target),
        record=record,
        files=tuple(shard.path.name for shard in layout.shards),
        unknown=work.unknown,
        left_out=tuple(map(str, layout.left_out)),
        backend=name,
        threads=smoother.used,
        bytes=total,
        seconds=time.perf_counter() - begin,
        hash_seconds=hash_seconds,
        resumed=pending is not None,
    )


def _check_own_files(layout: Layout) -> None:
    """Refuse to write through links: in place means the files of this folder."""
    for shard in layout.shards:
        if shard.path.is_symlink():
            raise CheckpointError(
                f"{str(shard.path)!r} is a link to {str(shard.path.resolve())!r}, which others may use: smooth into a "
                "new folder, or that file itself in place"
            )


def _target(layout: Layout, dst: str | os.PathLike[str], overwrite: bool) -> Path:
    """The output's path, when there is room for it and nothing that must stay."""
    target = Path(os.path.realpath(Path(dst).expanduser()))
    source = Path(os.path.realpath(layout.source))
    if target == source or source in target.parents:
        raise ArgumentError(f"dst is src or lies in it ({str(target)!r}): choose another place, or in_place=True (--in-place)")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {str(target)!r}: the folder {str(target.parent)!r} does not exist; create it first")
    if os.path.exists(target):  # False too for a name that is too long, which writing then names
        kind = "folder" if layout.is_folder else "file"
        if target.is_dir() != layout.is_folder:
            raise OutputError(f"cannot write the {kind} {str(target)!r}: something else has that name; choose another one")
        if not overwrite:
            raise OutputError(f"the {kind} {str(target)!r} exists already: choose another one, or replace it (--overwrite)")
    files.remove_abandoned(target)
    need = layout.size + _SPARE * (1 + len(layout.shards))
    free = shutil.disk_usage(target.parent).free
    if free < need:
        raise OutputError(
            f"cannot write {str(target)!r}: it takes {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free some space or "
            "choose another folder"
        )
    return target


def _make_folder(
    work: Work, target: Path, smoother: Smoother, hashes: bool, overwrite: bool, advance: Callable[[int], None]
) -> tuple[dict[str, Any], float]:
    record, seconds = {**work.record, "sha256": {}} if hashes else work.record, 0.0
    with files.atomic_directory(target, replace=overwrite) as folder:
        for path in work.layout.companions:
            if str(path) == SIDECAR:
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _copy(work.layout.source / path, folder / path)
        for shard in work.layout.shards:
            written, took = _write(work, shard, folder / shard.path.name, smoother, hashes, advance)
            seconds += took
            if hashes:
                record["sha256"].update(written["sha256"])
        files.write_json(folder / SIDECAR, record)
    return record, seconds


def _write(
    work: Work, shard: Header, target: Path, smoother: Smoother, hashes: bool, advance: Callable[[int], None]
) -> tuple[dict[str, Any], float]:
    """Make one file of weights; returns its record and the time for hashing."""
    before, after = Digest(hashes), Digest(hashes)
    with files.atomic_write(target) as file:
        # The hashes are known at the end and have a fixed length: the header is written twice.
        file.write(_head(work, shard, _NO_HASH if hashes else None, _NO_HASH if hashes else None)[0])
        if hashes:
            before.update(_first_bytes(shard))
        transform(shard.path, list(cut(shard)), smoother, file, before, after, advance)
        head, record = _head(work, shard, before.hex(), after.hex())
        file.seek(0)
        file.write(head)
    return record, before.seconds + after.seconds


def _head(work: Work, shard: Header, source: str | None, data: str | None) -> tuple[bytes, dict[str, Any]]:
    record = dict(work.record)
    if source is not None:
        record["sha256"] = {shard.path.name: {"source": source, "data": data}}
    return shard.with_metadata({**shard.metadata, KEY: json.dumps(record)}), record


def _first_bytes(shard: Header) -> bytes:
    """The header as it stands in the file."""
    head = bytearray(shard.data)
    with shard.path.open("rb") as file:
        read_exactly(file.fileno(), memoryview(head), 0, shard.path)
    return bytes(head)


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as original, files.atomic_write(target) as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
    except OutputError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {str(source)!r}: {(error.strerror or str(error)).lower()}") from error
