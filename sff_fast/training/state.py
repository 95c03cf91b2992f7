"""``state/``: what a run needs to go on after it was stopped, complete or not there.

Every save is a folder ``state/save-000012`` with ``state.json`` and the tensors: in safetensors files, or, where several
processes have written, in those of ``torch.distributed.checkpoint``. The JSON holds the format version, the hash and size
of each file and a hash of its own content. The two newest saves are kept: one that is damaged is refused, which is said,
and the one before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..distributed.checkpoint import Like, has_parts, read_parts, write_parts
from ..distributed.group import Group
from ..errors import CheckpointError
from ..files import (
    atomic_directory,
    copy_file,
    make_directory,
    read_json,
    remove,
    save_safetensors,
    sha256,
    write_json,
)

FORMAT = 1
_NAME = re.compile(r"^save-(\d{6,})$")


@dataclasses.dataclass(frozen=True)
class Saved:
    """A save that was found whole.

    Attributes:
        directory: Its folder.
        content: The JSON content.
    """

    directory: Path
    content: dict[str, Any]

    @property
    def by_several(self) -> bool:
        """Whether several processes have written it, each its part of the tensors."""
        return has_parts(self.directory)

    def tensors(self, name: str, like: Like = lambda name: None) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of one of its sets, on the CPU, a few at a time.

        Args:
            name: The set.
            like: Gives for a name the tensor that it belongs to, or None. Where that is a DTensor, and several processes have
                written the save, it comes as one, this process's part of it alone. Default: all come whole.
        """
        if self.by_several:
            return read_parts(self.directory, name, like)
        return iterate_safetensors(self.directory / f"{name}.safetensors")


class StateStore:
    """The saves of one run.

    Args:
        directory: The run's ``state`` folder; it is made by the first save.
        keep: How many saves to keep.
        group: The processes that save together. Default: this one alone.
    """

    def __init__(self, directory: Path, keep: int = 2, group: Group | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.group = Group() if group is None else group
        self._damaged: list[Path] = []

    def save(
        self,
        content: dict[str, Any],
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        copies: Mapping[str, Path],
    ) -> Path:
        """Write a save and remove what is older than the newest ``keep``; every process must call.

        Args:
            content: What JSON holds, as the writing process has it.
            tensors: Name of a safetensors file (without suffix) to its tensors.
            copies: Name of a safetensors file to a file that is copied as it is.

        Returns:
            The new folder.
        """
        with contextlib.ExitStack() as stack:
            target, folder = self.group.lead(lambda: self._begin(stack))
            if self.group.size == 1:
                for name, values in tensors.items():
                    save_safetensors(folder / f"{name}.safetensors", values)
                hashes = {}
            else:
                own = write_parts(folder, tensors, self.group)
                hashes = dict(pair for some in self.group.gather([(path.name, sha256(path)) for path in own]) for pair in some)
            if self.group.writes:
                _complete(folder, content, copies, hashes)
        if self.group.writes:
            whole = [path for path in self._folders() if path not in self._damaged]
            for path in [*self._damaged, *whole[: -self.keep]]:
                remove(path)
            self._damaged = []
        self.group.barrier()
        return target

    def _begin(self, stack: contextlib.ExitStack) -> tuple[Path, Path]:
        """The new folder, and its temporary name until the stack is closed."""
        make_directory(self.directory)
        present = self._folders()
        number = int(_NAME.match(present[-1].name)[1]) + 1 if present else 0
        target = self.directory / f"save-{number:06d}"
        return target, stack.enter_context(atomic_directory(target))

    def load(self) -> Saved | None:
        """The newest save that is whole, or None when nothing was ever saved.

        Raises:
            CheckpointError: There are saves, and none of them is whole and of this format.
        """
        reasons = []
        for folder in reversed(self._folders()):
            try:
                saved = _read(folder)
            except CheckpointError as error:
                reasons.append(str(error))
                self._damaged.append(folder)
                continue
            for reason in reasons:
                warnings.warn(f"{reason}; the save before it, {str(folder)!r}, is used", stacklevel=2)
            return saved
        if reasons:
            raise CheckpointError(f"no save can be used to resume: {'; '.join(reasons)}; start again (overwrite)")
        return None

    def clear(self, keep: int) -> None:
        """Remove all but the newest saves, and the weights beside them that a running run works with."""
        folders = self._folders()
        for path in folders[: len(folders) - keep]:
            remove(path)
        for path in self.directory.glob("*.safetensors"):
            remove(path)
        if not keep and self.directory.is_dir():
            remove(self.directory)

    def _folders(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.match(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(_NAME.match(path.name)[1]))


def _complete(folder: Path, content: dict[str, Any], copies: Mapping[str, Path], hashes: Mapping[str, str]) -> None:
    """Copy what is copied, and write ``state.json``; what has a hash already is not read again."""
    for name, source in copies.items():
        copy_file(source, folder / f"{name}.safetensors")
    files = {
        path.name: {"sha256": hashes.get(path.name) or sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    body = {"files": files, "content": content}
    write_json(folder / "state.json", {"format": FORMAT, "sha256": _digest(body), **body})


def _read(folder: Path) -> Saved:
    """Read a save and check every file of it."""
    raw = read_json(folder / "state.json", error=CheckpointError)
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise CheckpointError(f"the save {str(folder)!r} has the format {version!r}, this version reads {FORMAT}")
    body = {"files": raw.get("files"), "content": raw.get("content")}
    if raw.get("sha256") != _digest(body):
        raise CheckpointError(f"the save {str(folder)!r} is damaged: the content of state.json does not match its hash")
    if not _is_listing(raw["files"]):
        raise CheckpointError(f"the save {str(folder)!r} is damaged: state.json does not list the files beside it")
    for name, expected in raw["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"the save {str(folder)!r} is damaged: {name} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"the save {str(folder)!r} is damaged: {name} has {size} bytes instead of {expected['bytes']}")
        if sha256(path, error=CheckpointError) != expected["sha256"]:
            raise CheckpointError(f"the save {str(folder)!r} is damaged: {name} does not match its hash")
    return Saved(folder, raw["content"])


def _is_listing(files: Any) -> bool:
    """Whether this is a mapping of names in the save's own folder to sizes and hashes."""
    return isinstance(files, dict) and all(
        Path(name).name == name and isinstance(entry, dict) and {"sha256", "bytes"} <= entry.keys()
        for name, entry in files.items()
    )


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def iterate_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a safetensors file, one at a time, on the CPU.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {' '.join(str(error).split())}") from error


# --- nested values with tensors in them -------------------------------------------------------------------------------


def split_tensors(value: Any, tensors: dict[str, torch.Tensor], prefix: str = "") -> Any:
    """Move the tensors of a nested value, such as an optimizer's ``state_dict``, into ``tensors``; JSON holds the rest.

    Args:
        value: Dictionaries (any string or integer keys), lists, tuples, tensors and JSON scalars.
        tensors: Receives the tensors under their path in the value.
        prefix: Path of the value.

    Returns:
        What :func:`join_tensors` turns back into the value.
    """
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value
        return {"tensor": prefix}
    if isinstance(value, dict):
        return {"dict": [[key, split_tensors(item, tensors, f"{prefix}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [split_tensors(item, tensors, f"{prefix}/{index}") for index, item in enumerate(value)]
        return {type(value).__name__: items}
    return {"value": value}


def join_tensors(skeleton: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """Turn the result of :func:`split_tensors` back into the value."""
    ((kind, inner),) = skeleton.items()
    makers: dict[str, Callable[[Any], Any]] = {
        "tensor": lambda name: tensors[name],
        "dict": lambda pairs: {key: join_tensors(item, tensors) for key, item in pairs},
        "list": lambda items: [join_tensors(item, tensors) for item in items],
        "tuple": lambda items: tuple(join_tensors(item, tensors) for item in items),
        "value": lambda plain: plain,
    }
    return makers[kind](inner)
