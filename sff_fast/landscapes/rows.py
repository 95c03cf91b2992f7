"""The rows of the grids that were measured so far, in a file that an interrupted landscape goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sff_fast.errors import CheckpointError
from sff_fast.files import AppendedFile
from sff_fast.training.identity import check_identity
from sff_fast.training.log import as_json, finite

FORMAT = 1
NAME = "landscape.jsonl"


class Rows:
    """What was measured, by centre: rows of its grid, its Hessian; kept in a file as it comes.

    Every line is brought to the disk before the next one is measured; one that was cut off by a crash is measured again.

    Args:
        folder: Where the file lies, or None to keep everything in memory.
        identity: What the landscape is; a file that was begun for another one is refused.

    Raises:
        CheckpointError: The file is of another landscape, or damaged.
        OutputError: The file cannot be written; so too by :meth:`put`.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        self._file = None
        if folder is None:
            return
        path = folder / NAME
        length = self._read(path, identity) if path.exists() else 0
        self._file = AppendedFile(path, length)
        if not length:
            self._write({"format": FORMAT, "identity": as_json(dict(identity))})

    def get(self, centre: str, what: str) -> dict[str, Any] | None:
        """What was measured of a centre: ``"hessian"`` or the number of a row, as text."""
        return self._records.get((centre, what))

    def put(self, centre: str, what: str, **fields: Any) -> dict[str, Any]:
        """Keep something that was measured, as JSON will give it back, and return that."""
        record = finite({"centre": centre, "what": what, **fields})
        self._write(record)
        self._records[centre, what] = record
        return record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.sync()

    def _read(self, path: Path, identity: Mapping[str, Any]) -> int:
        """Take over what the file holds; returns how many bytes of it are whole lines."""
        whole = path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]
        try:
            head, *records = map(json.loads, whole.splitlines()) if whole else [None]
            if head is not None:
                if head["format"] != FORMAT:
                    raise CheckpointError(f"{str(path)!r} has the format {head['format']!r}, this version reads {FORMAT}")
                check_identity(path.parent.parent, head["identity"], as_json(dict(identity)))
            self._records = {(record["centre"], record["what"]): record for record in records}
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{str(path)!r} is damaged ({error}): start anew (overwrite)") from error
        return len(whole)
