"""What reads bytes that somebody else wrote: every parser as a function of a file's bytes, for fuzzers.

``python tests/fuzz/parsers.py [CORPUS …] [-max_total_time=60 -seed=1 …]`` runs them under atheris, guided by coverage; the
options are libFuzzer's. The first byte of an input chooses the parser, the second its options, the rest is the file.

A parser may take a file or refuse it with an error of the package, on one line. What it takes must hold what is promised: see
each function. Everything else ends the process, and atheris keeps the input.

Not here: parquet files (pyarrow's parser) and the weights' pickles beyond what ``torch.load`` lets through.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import atheris

    with atheris.instrument_imports(include=["sff_fast"]):
        import sff_fast.adapters.archive
        import sff_fast.checkpoints
        import sff_fast.cli.types
        import sff_fast.data
        import sff_fast.training.state

import sff_fast
from sff_fast import files
from sff_fast.adapters import checkpoint
from sff_fast.checkpoints import journal, layout, pipe
from sff_fast.checkpoints.header import read_header
from sff_fast.cli import types
from sff_fast.data.split import parse_split
from sff_fast.errors import SffFastError
from sff_fast.training import state

SCRATCH = Path(tempfile.mkdtemp(prefix="sff-fuzz-"))
LIMIT = 1 << 16
"""Bytes of an input: a parser's mistakes show in small files, and large ones are slow."""


def written(name: str, data: bytes) -> Path:
    """A file with these bytes."""
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def plan(data: bytes, option: int) -> None:
    """An init plan, also with the hash made right: what is loaded is saved to the same hash, and smooths or is refused."""
    path = written("plan.json", data)
    try:
        loaded = sff_fast.InitPlan.load(path)
    except SffFastError as error:
        actual = str(error).partition("its content has hash ")[2].partition(",")[0]
        if not actual:
            raise
        content = files.read_json(path)
        content["hash"] = actual
        path.write_text(json.dumps(content))
        loaded = sff_fast.InitPlan.load(path)
    loaded.save(SCRATCH / "again.json")
    assert sff_fast.InitPlan.load(SCRATCH / "again.json").hash == loaded.hash
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    sff_fast.smooth_(model, loaded, seed=option, backend=("cpu", "reference")[option % 2], subset=True)


def header(data: bytes, option: int) -> None:
    """A safetensors header: the tensors tile the data, and the header that is made of it says the same."""
    found = read_header(written("x.safetensors", data))
    at = found.data
    for entry in found.entries:
        assert entry.begin == at
        at = entry.end
    assert at == found.size == len(data)
    again = read_header(written("y.safetensors", found.with_metadata(found.metadata) + data[found.data :]))
    assert again.metadata == found.metadata
    assert [(e.name, e.dtype, e.shape) for e in again.entries] == [(e.name, e.dtype, e.shape) for e in found.entries]


def piped(data: bytes, option: int) -> None:
    """A safetensors file from a pipe: what comes through is the input, byte for byte."""
    path = SCRATCH / "piped.safetensors"
    pipe.spool(io.BytesIO(data), path)
    assert path.read_bytes() == data


def index(data: bytes, option: int) -> None:
    """The index of a sharded checkpoint: it names files of its own folder alone."""
    folder = SCRATCH / "sharded"
    folder.mkdir(exist_ok=True)
    files.save_safetensors(folder / "a.safetensors", {"weight": torch.ones(2, 3)})
    files.save_safetensors(folder / "b.safetensors", {"bias": torch.ones(2)})
    written(f"sharded/{layout.INDEX}", data)
    found = layout.read_layout(folder)
    assert {shard.path.parent for shard in found.shards} == {folder}
    checkpoint.read_config(folder / layout.INDEX)


def journals(data: bytes, option: int) -> None:
    """The journal of a smoothing in place: what is read back is what was stored."""
    path = written("journal", data)
    found = journal.load(path)
    assert found is not None
    journal.store(path, found.identity, memoryview(found.data), found.file, found.begin)
    assert journal.load(path) == found


def weights(data: bytes, option: int) -> None:
    """A file of weights: names and dense tensors."""
    path = written(("w.safetensors", "w.ckpt", "w.pth", "w.bin")[option % 4], data)
    with checkpoint.pickles_allowed():
        found = checkpoint.named_tensors(checkpoint.unwrapped(checkpoint.read_weights(path))[0], path)
    assert all(tensor.is_contiguous() and tensor.is_floating_point() for tensor in found.values())


def save(data: bytes, option: int) -> None:
    """The save of a run, also with the hash of its content made right."""
    folder = SCRATCH / "save-000001"
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        files.save_safetensors(folder / "model.safetensors", {"a": torch.ones(2)})
    path = written("save-000001/state.json", data)
    if option % 2:
        content = files.read_json(path)
        if isinstance(content, dict):
            body = {"files": content.get("files"), "content": content.get("content")}
            path.write_text(json.dumps({"format": state.FORMAT, "sha256": state._digest(body), **body}))
    found = state.StateStore(SCRATCH).load()
    assert found is not None
    assert found.directory == folder


def table(data: bytes, option: int) -> None:
    """A table of numbers: finite ones, a name a column, time stamps that increase."""
    name = ("t.csv", "t.csv", "t.tsv", "t.csv.gz", "t.npy", "t.txt")[option % 6]
    path = written(name, data)
    fill = (None, "ffill", "interpolate")[option // 6 % 3]
    found = sff_fast.read_table(path, fill=fill, drop=bool(option & 0x80))
    assert np.isfinite(found.values).all()
    assert found.values.shape == (len(found), len(found.columns)) == (len(found), len(set(found.columns)))
    if found.timestamps is not None:
        assert (np.diff(found.timestamps) > np.timedelta64(0, "us")).all()
    json.dumps(found.describe(), allow_nan=False)


OPTIONS: tuple[Callable[[str], Any], ...] = (
    *(
        lambda text, kind=kind: kind.convert(text, None, None)
        for kind in (
            types.Alpha(),
            types.Number(0, 1),
            types.Integer(1, 100),
            types.Numbers(types.Number(0, 1)),
            types.Seeds(),
            types.Names("name", ("a", "b")),
            types.GroupAlphas(),
        )
    ),
    parse_split,
)


def options(data: bytes, option: int) -> None:
    """The value of an option on the command line."""
    OPTIONS[option % len(OPTIONS)](data.decode("utf-8", "surrogateescape"))


def seed_inputs() -> dict[str, bytes]:
    """The inputs of :mod:`seeds`, under a name each; the tables of the plan among them are put where it looks for them."""
    from seeds import seeds, with_a_table

    sff_fast.trace(with_a_table).save(SCRATCH / "plan.json")
    names = [parser.__name__ for parser in PARSERS]
    return {f"{parser}-{option}": bytes([names.index(parser), option]) + content for parser, option, content in seeds()}


PARSERS = (plan, header, piped, index, journals, weights, save, table, options)


def one_input(data: bytes) -> bool:
    """Give an input to its parser.

    Returns:
        Whether the parser took it; False where it was refused in one line.

    Raises:
        Exception: What is neither.
    """
    if len(data) < 2:
        return False
    parser, option, content = PARSERS[data[0] % len(PARSERS)], data[1], data[2 : LIMIT + 2]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            parser(content, option)
    except (SffFastError, click.UsageError) as error:
        message = str(error.message if isinstance(error, click.UsageError) else error)
        assert message.strip(), f"{parser.__name__}: an empty message"
        assert "\n" not in message, f"{parser.__name__}: a message of several lines: {message!r}"
        return False
    return True


def main() -> None:
    """Run under atheris."""
    torch.set_num_threads(1)
    corpus = SCRATCH / "seeds"
    corpus.mkdir()
    for name, data in seed_inputs().items():
        (corpus / name).write_bytes(data)
    atheris.Setup([*sys.argv, str(corpus), f"-max_len={LIMIT}"], lambda data: one_input(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
