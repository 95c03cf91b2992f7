"""What a checkpoint consists of: one safetensors file, or a Hugging Face folder with one or an index of several."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sff_fast import files
from sff_fast.checkpoints.header import Header, read_header
from sff_fast.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
#: Other forms in which a folder may hold the same weights: copied, they would be weights that were not smoothed.
_OTHER_WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Layout:
    """The files of a checkpoint.

    Args:
        source: The file or folder.
        shards: Headers of the files of weights, in the order of their names.
        companions: Other files of the folder (configuration, tokenizer), relative to it.
        left_out: Files of the folder that hold weights in another form, relative to it.
    """

    source: Path
    shards: tuple[Header, ...]
    companions: tuple[Path, ...] = ()
    left_out: tuple[Path, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint is a folder."""
        return self.source.is_dir()

    @property
    def size(self) -> int:
        """Bytes of all files that belong to it."""
        return sum(shard.size for shard in self.shards) + sum((self.source / path).stat().st_size for path in self.companions)


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Find the files of a checkpoint and read the headers of its weights.

    Args:
        path: A ``.safetensors`` file, or a folder with ``model.safetensors``, with ``model.safetensors.index.json`` and the
            files that it names, or with exactly one other ``.safetensors`` file.

    Raises:
        CheckpointError: There is no such checkpoint, a file is damaged, or the index does not fit the files.
    """
    source = Path(path).expanduser().absolute()
    try:
        source.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {str(source)!r}: {(error.strerror or str(error)).lower()}") from error
    if not source.is_dir():
        if source.suffix != ".safetensors":
            raise CheckpointError(
                f"{str(source)!r} is no safetensors file: expected one, or a folder that holds {SINGLE} or {INDEX}"
            )
        return Layout(source, (read_header(source),))
    weights = _weights(source)
    shards = tuple(read_header(source / name) for name in weights)
    if (source / INDEX).is_file() and weights != [SINGLE]:
        _check_index(source / INDEX, shards)
    companions, left_out = [], []
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts) or str(relative) in weights:
            continue
        if file.is_symlink():
            _check_link(file, source)
        (left_out if file.suffix in _OTHER_WEIGHTS or file.name.endswith(".bin.index.json") else companions).append(relative)
    return Layout(source, shards, tuple(companions), tuple(left_out))


def _check_link(file: Path, source: Path) -> None:
    """Refuse a link that would carry a file from elsewhere into the copy of a checkpoint.

    A hub's cache keeps the files of ``snapshots/HASH`` as links into ``blobs``, both in one folder.

    Raises:
        CheckpointError: It leads out of the checkpoint.
    """
    folder = source.resolve()
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    target = file.resolve()
    if not target.is_relative_to(root):
        raise CheckpointError(
            f"{str(file)!r} is a link out of the checkpoint, to {str(target)!r}, and would be copied with it: remove the link, "
            "or put the file itself there"
        )


def _weights(folder: Path) -> list[str]:
    """Names of the files of weights."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX, CheckpointError)
        table = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
            raise CheckpointError(f"{str(folder / INDEX)!r} has no weight_map of tensors to files: replace it")
        names = sorted(set(table.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{str(folder / INDEX)!r} names {name!r}: expected a safetensors file in the same folder")
        return names
    found = sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors" and path.is_file())
    if len(found) != 1:
        what = "no safetensors file" if not found else f"several ({', '.join(found)}) and no {INDEX}"
        raise CheckpointError(f"the folder {str(folder)!r} holds {what}: expected {SINGLE}, or {INDEX} with its files")
    return found


def _check_index(index: Path, shards: tuple[Header, ...]) -> None:
    """The index and the files name the same tensors."""
    table = files.read_json(index, CheckpointError)["weight_map"]
    there = {entry.name: shard.path.name for shard in shards for entry in shard.entries}
    if sum(len(shard.entries) for shard in shards) != len(there):
        raise CheckpointError(f"the files that {str(index)!r} names hold a tensor twice: replace them")
    for name in {**table, **there}:
        if table.get(name) != there.get(name):
            raise CheckpointError(
                f"{str(index)!r} puts the tensor {name!r} into {table.get(name)!r}, but it is in {there.get(name)!r}: replace it"
            )
