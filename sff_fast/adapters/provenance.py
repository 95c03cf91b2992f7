"""What was done to the weights of a saved model: a small file beside them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sff_fast import files
from sff_fast.errors import CheckpointError
from sff_fast.smooth import VOLATILE, remember_smoothing, smoothing_of
from sff_fast.version import __version__

FILE = "sff_fast.json"


def record(model: nn.Module, folder: Path) -> None:
    """Write the records of :func:`sff_fast.smoothing_of` into a model's folder; nothing where there are none.

    Time and threads are left out: equal runs write equal files.
    """
    records = [{key: value for key, value in one.items() if key not in VOLATILE} for one in smoothing_of(model)]
    if records:
        files.write_json(folder / FILE, {"sff_fast": __version__, "smoothing": records})


def restore(model: nn.Module, source: Path | None) -> None:
    """Give a model that was loaded from ``source`` (a file or folder) the records that lie beside its weights.

    Raises:
        CheckpointError: The file is damaged.
    """
    if source is None:
        return
    path = (source if source.is_dir() else source.parent) / FILE
    if not path.exists():
        return
    content = files.read_json(path, CheckpointError)
    records = content.get("smoothing") if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(r, dict) and {"seed", "plan_hash"} <= set(r) for r in records):
        raise CheckpointError(f"{str(path)!r} does not say how the model was smoothed: remove it to load the weights without")
    remember_smoothing(model, records)
