"""Smoothing a checkpoint where it is, through the journal."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sff_fast import files
from sff_fast.checkpoints import journal
from sff_fast.checkpoints.chunks import Chunk, Smoother, cut
from sff_fast.checkpoints.header import Header
from sff_fast.checkpoints.pipeline import Digest, read_exactly
from sff_fast.checkpoints.work import SIDECAR, Work, sidecar_of
from sff_fast.errors import CheckpointError, OutputError

CHUNK = 32 << 20
"""Bytes that the journal holds at a time: each piece waits for the disk four times, so they are larger than in a copy."""


def overwrite_files(
    work: Work, smoother: Smoother, pending: journal.Pending | None, hashes: bool, advance: Callable[[int], None]
) -> tuple[dict[str, Any], float]:
    """Smooth the files of a checkpoint in place, or finish it.

    Args:
        work: What is to be done.
        smoother: Does it to a piece.
        pending: What the journal holds.
        hashes: Whether the record holds hashes: one more pass before, one after.
        advance: Is told the bytes that are done.

    Returns:
        The record, and the time for hashing.

    Raises:
        CheckpointError: The journal is of another task.
        OutputError: A file cannot be written.
    """
    source, shards = work.layout.source, work.layout.shards
    identity = {
        **work.record["smoothing"][-1],
        "files": [[shard.path.name, shard.size] for shard in shards],
    }
    place = journal.journal_of(source)
    with _alone(source):
        if pending is not None:
            if pending.identity["task"] != identity:
                told = pending.identity["task"]
                raise CheckpointError(
                    f"{str(source)!r} is half smoothed with seed {told['seed']}, factors {told['factors']}, rounding "
                    f"{told['rounding']!r} and plan {told['plan_hash'][:12]}: finish that first, with the same options"
                )
            record, seconds = pending.identity["record"], 0.0
            hashes = "sha256" in record
        else:
            record, seconds = dict(work.record), 0.0
            if hashes:
                digests = {shard.path.name: _hashed(shard.path, 0, shard.size) for shard in shards}
                seconds += sum(digest.seconds for digest in digests.values())
                record["sha256"] = {name: {"source": digest.hex()} for name, digest in digests.items()}
        whole = {"task": identity, "record": record}
        done = {} if pending is None else _finish(work, pending)
        for shard in shards:
            start = done.get(shard.path.name, shard.data)
            advance(start - shard.data)
            for chunk in cut(shard, CHUNK, start):
                if any(entry.name in work.recipes for entry, _, _ in chunk.parts):
                    _replace(shard, chunk, smoother, place, whole)
                advance(chunk.end - chunk.begin)
        if hashes:
            for shard in shards:
                digest = _hashed(shard.path, shard.data, shard.size)
                seconds += digest.seconds
                record["sha256"][shard.path.name]["data"] = digest.hex()
        files.write_json(source / SIDECAR if work.layout.is_folder else sidecar_of(source), record)
        files.remove(place)
    return record, seconds


def _finish(work: Work, pending: journal.Pending) -> dict[str, int]:
    """Write the piece that the journal holds; returns for each file up to which byte it is done."""
    done: dict[str, int] = {}
    for shard in work.layout.shards:
        if shard.path.name == pending.file:
            with _writable(shard.path) as fd:
                _write_exactly(fd, memoryview(pending.data), pending.begin, shard.path)
            return {**done, pending.file: pending.begin + len(pending.data)}
        done[shard.path.name] = shard.size
    raise CheckpointError(f"the journal of {str(work.layout.source)!r} is for {pending.file!r}, which is not there: put it back")


def _replace(shard: Header, chunk: Chunk, smoother: Smoother, place: Path, whole: dict[str, Any]) -> None:
    """Smooth one piece: new bytes into the journal, then into the file."""
    memory = torch.empty(chunk.end - chunk.begin, dtype=torch.uint8)
    data = memoryview(memory.numpy())
    with _writable(shard.path) as fd:
        read_exactly(fd, data, chunk.begin, shard.path)
        smoother(chunk, memory)
        journal.store(place, whole, data, shard.path.name, chunk.begin)
        _write_exactly(fd, data, chunk.begin, shard.path)


@contextmanager
def _writable(path: Path) -> Iterator[int]:
    """A descriptor for reading and overwriting a file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(
            f"cannot overwrite {str(path)!r}: {(error.strerror or str(error)).lower()}; make it writable"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _write_exactly(fd: int, data: memoryview, offset: int, path: Path) -> None:
    done = 0
    try:
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        os.fdatasync(fd)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot overwrite {str(path)!r}: {reason}; the same call goes on from here") from error


def _hashed(path: Path, begin: int, end: int) -> Digest:
    digest = Digest(True)
    buffer = memoryview(bytearray(min(8 << 20, max(end - begin, 1))))
    with path.open("rb") as file:
        for at in range(begin, end, len(buffer)):
            piece = buffer[: min(len(buffer), end - at)]
            read_exactly(file.fileno(), piece, at, path)
            digest.update(piece)
    return digest


@contextmanager
def _alone(source: Path) -> Iterator[None]:
    """Keep other processes from smoothing the same checkpoint meanwhile."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"cannot overwrite {str(source)!r}: another process is smoothing it; wait until it ends") from error
        yield
    finally:
        os.close(fd)
