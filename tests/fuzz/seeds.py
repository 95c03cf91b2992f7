"""Inputs from which fuzzing starts: one of each format that :mod:`parsers` reads, made by what writes it."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import sff_fast
from sff_fast import files
from sff_fast.checkpoints import journal
from sff_fast.training.state import StateStore

CSV = b"date,load,wind\n2020-01-01 00:00:00,1.5,2\n2020-01-01 01:00:00,,3e2\n2020-01-01 02:00:00,2.5,-4\n"
TABLES = {
    0: CSV,
    2: CSV.replace(b",", b"\t"),
    3: gzip.compress(CSV, mtime=0),
    5: b"1;2;3\n4;5;6\n7;8;9\n",
    7: b'\xef\xbb\xbf"a b";c\n"1";2\n"3";4\n',
    0x80: b"when;id;v\n01/02/2020;x;1\n01/02/2020;y;2\n02/02/2020;x;3\n02/02/2020;y;nan\n",
    6: "datum,a\n2020-03,1\n2020-04,2\n2020-05,4\n".encode("utf-16"),
    12: b"time,a\n1577836800,1\n1577840400,2\n1577844000,5\n",
}
TEXTS = ("0.7", "head.*=1,*=0.7", "0.5,0.7", "3", "0,1,2", "a,b", "head=0.5,0.9", "0.7,0.1,0.2", "ett-hour")


def model() -> torch.nn.Module:
    """A model with uniform draws and constants."""
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))


def with_a_table() -> torch.nn.Module:
    """A model with fixed values, which a plan keeps in a file beside it."""
    return torch.nn.ParameterList([torch.nn.Parameter(torch.arange(4.0)), torch.nn.Parameter(torch.randn(3, 2))])


def _plans(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    plan = sff_fast.trace(model)
    plan.save(folder / "plan.json")
    yield "plan", 0, (folder / "plan.json").read_bytes()
    other = plan.override("0.*", sff_fast.TruncNormal(0, 0.02, -0.04, 0.04)).override("1.weight", sff_fast.Normal(0.5, 0.1))
    other.save(folder / "plan.json")
    yield "plan", 1, (folder / "plan.json").read_bytes()
    sff_fast.trace(with_a_table).save(folder / "plan.json")
    yield "plan", 2, (folder / "plan.json").read_bytes()


def _checkpoints(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    tensors = {"weight": torch.ones(2, 3), "half": torch.zeros(3, dtype=torch.bfloat16), "none": torch.ones(0, 4)}
    files.save_safetensors(folder / "x.safetensors", tensors, {"format": "pt"})
    content = (folder / "x.safetensors").read_bytes()
    for parser in ("header", "piped", "weights"):
        yield parser, 0, content
    yield "index", 0, b'{"metadata": {"total_size": 32}, "weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}}'
    journal.store(folder / "journal", {"seed": 1}, memoryview(b"12345678"), "a.safetensors", 64)
    yield "journals", 0, (folder / "journal").read_bytes()
    for option, legacy in ((1, True), (2, False)):
        archive = io.BytesIO()
        torch.save({"state_dict": {"a": torch.ones(2)}}, archive, _use_new_zipfile_serialization=not legacy)
        yield "weights", option, archive.getvalue()
    for option in (0, 1):
        saved = StateStore(folder).save({"step": 3, "rng": [1, 2]}, {"model": {"a": torch.ones(2)}}, {})
        yield "save", option, (saved / "state.json").read_bytes()


def seeds() -> Iterator[tuple[str, int, bytes]]:
    """Name of a parser, its options and a file's bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield from _plans(Path(name))
        yield from _checkpoints(Path(name))
    array = io.BytesIO()
    np.save(array, np.arange(12.0).reshape(6, 2))
    for option, content in {**TABLES, 4: array.getvalue()}.items():
        yield "table", option, content
    for option, text in enumerate(TEXTS):
        yield "options", option, text.encode()
