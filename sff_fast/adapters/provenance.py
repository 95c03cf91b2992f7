"""What was done to the weights of a saved model: a small file beside them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sff_fast import files
from sff_fast.checkpoints.header import read_header
from sff_fast.checkpoints.work import SIDECAR as FILE
from sff_fast.checkpoints.work import read_records, records_of
from sff_fast.smooth import VOLATILE, remember_smoothing, smoothing_of
from sff_fast.version import __version__


def record(model: nn.Module, folder: Path) -> None:
    """Write the records of :func:`sff_fast.smoothing_of` into a model's folder; nothing where there are none.

    Time and threads are left out: equal runs write equal files.
    """
    records = [{key: value for key, value in one.items() if key not in VOLATILE} for one in smoothing_of(model)]
    if records:
        files.write_json(folder / FILE, {"sff_fast": __version__, "smoothing": records})


def restore(model: nn.Module, source: Path | None) -> None:
    """Give a model that was loaded from ``source`` (a file or folder) the records in or beside its weights.

    Raises:
        CheckpointError: The file is damaged.
    """
    if source is None:
        return
    records = read_records((source if source.is_dir() else source.parent) / FILE)
    if not records and source.suffix == ".safetensors" and source.is_file():
        records = records_of(read_header(source))
    if records:
        remember_smoothing(model, records)
