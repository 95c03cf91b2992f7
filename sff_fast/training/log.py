"""``log.jsonl``: one JSON object a line, in the order in which things happened."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import AppendedFile


class RunLog:
    """An append-only log that a resumed run cuts back to where its save was made.

    Args:
        path: The file, or None to write nothing.
        length: Bytes to keep of an existing file: 0 begins anew.

    Raises:
        CheckpointError: The file is shorter than ``length``, so lines of it are lost.
        OutputError: The file cannot be written; so too by the methods.
    """

    def __init__(self, path: Path | None, length: int = 0) -> None:
        self._file = None
        if path is None:
            return
        present = path.stat().st_size if path.exists() else 0
        if present < length:
            raise CheckpointError(
                f"{str(path)!r} has {present} bytes, and the save to resume from was made at {length}: lines were "
                "lost; restore the file, or start again (overwrite)"
            )
        self._file = AppendedFile(path, length)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line; numbers that JSON cannot hold (NaN, infinity) become null."""
        if self._file is not None:
            line = json.dumps({"event": event, **finite(fields)}, allow_nan=False)
            self._file.write(line.encode("utf-8") + b"\n")

    def sync(self) -> int:
        """Bring the lines to the disk and return the length of the file in bytes (0 without a file)."""
        return 0 if self._file is None else self._file.sync()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def finite(value: Any) -> Any:
    """A nested value with every NaN and infinity replaced by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def as_json(value: Any) -> Any:
    """A nested value as it will be read back: tuples are lists, NaN and infinity are None."""
    return json.loads(json.dumps(finite(value), allow_nan=False))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The epoch records of a log, as a run's ``history`` holds them."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.pop("event") == "epoch":
            records.append(record)
    return records
