"""Read, change and write a file piece by piece, the three at once, through a few buffers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch

from sff_fast import files
from sff_fast.checkpoints.chunks import CHUNK, Chunk
from sff_fast.errors import CheckpointError

_BUFFERS = 4  # One is read into, one changed, one written, one waits.


class Digest:
    """A SHA-256 that knows the time it took; does nothing where it is not wanted.

    Args:
        wanted: Whether to hash at all.
    """

    def __init__(self, wanted: bool) -> None:
        self._hash = hashlib.sha256() if wanted else None
        self.seconds = 0.0

    def update(self, data: memoryview | bytes) -> None:
        """Take in more bytes."""
        if self._hash is not None:
            begin = time.perf_counter()
            self._hash.update(data)
            self.seconds += time.perf_counter() - begin

    def hex(self) -> str | None:
        """The 64 hexadecimal digits, None where nothing was hashed."""
        return None if self._hash is None else self._hash.hexdigest()


def read_exactly(fd: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill a buffer from a place in a file.

    Raises:
        CheckpointError: The file cannot be read, or became shorter.
    """
    done = 0
    try:
        while done < len(buffer):
            got = os.preadv(fd, [buffer[done:]], offset + done)
            if got == 0:
                raise CheckpointError(f"{str(path)!r} became shorter while it was read: leave it alone and try again")
            done += got
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {str(path)!r}: {(error.strerror or str(error)).lower()}") from error


def transform(
    source: Path,
    chunks: Sequence[Chunk],
    change: Callable[[Chunk, torch.Tensor], None],
    target: BinaryIO,
    before: Digest,
    after: Digest,
    advance: Callable[[int], None],
) -> None:
    """Write the pieces of a file, changed, one behind the other.

    Args:
        source: The file to read.
        chunks: Its pieces in order.
        change: Changes the bytes of a piece in place.
        target: Where to write.
        before: Takes in the bytes as read.
        after: Takes in the bytes as written.
        advance: Is told the number of bytes done, from this thread.

    Raises:
        CheckpointError: The file cannot be read.
        OutputError: The target cannot be written.
    """
    size = max((chunk.end - chunk.begin for chunk in chunks), default=0)
    buffers = [torch.empty(min(size, CHUNK), dtype=torch.uint8) for _ in range(min(_BUFFERS, len(chunks)))]
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)

    def view(i: int) -> torch.Tensor:
        return buffers[i % _BUFFERS][: chunks[i].end - chunks[i].begin]

    def read(i: int, free: Future[None] | None) -> None:
        if free is not None:
            free.result()
        data = memoryview(view(i).numpy())
        read_exactly(fd, data, chunks[i].begin, source)
        before.update(data)

    def write(i: int) -> None:
        data = memoryview(view(i).numpy())
        begin = target.tell()
        target.write(data)
        target.flush()
        files.begin_writeback(target, begin, begin + len(data))
        after.update(data)

    try:
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            written: list[Future[None]] = []
            ahead = _BUFFERS - 2
            reads = [reader.submit(read, i, None) for i in range(min(ahead, len(chunks)))]
            try:
                for i, chunk in enumerate(chunks):
                    reads[i].result()
                    change(chunk, view(i))
                    written.append(writer.submit(write, i))
                    following = i + ahead
                    if following < len(chunks):
                        free = written[following - _BUFFERS] if following >= _BUFFERS else None
                        reads.append(reader.submit(read, following, free))
                    if i >= _BUFFERS:
                        written[i - _BUFFERS].result()  # A full disk is known at once, not at the end.
                    advance(chunk.end - chunk.begin)
                for future in written[-_BUFFERS:]:
                    future.result()
            except BaseException:
                reader.shutdown(cancel_futures=True)
                writer.shutdown(cancel_futures=True)
                raise
    finally:
        os.close(fd)
