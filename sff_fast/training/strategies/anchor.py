"""The weights that a run began with, kept to pull towards them: in a file that is mapped, or one copy on the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError
from ...files import make_directory, save_safetensors, sha256

FILE = "start.safetensors"


class Anchor:
    """One set of weights that does not change.

    With a folder it is a file whose pages are mapped: the system may drop them at any time and read them again, so that
    they take none of the memory that a process must have. Without, it is a copy on the CPU.

    Args:
        folder: Where the file lies, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._tensors: dict[str, torch.Tensor] = {}
        self._hash: str | None = None

    def take(self, parameters: Mapping[str, torch.Tensor], resumed: bool) -> None:
        """Keep the present values; of a resumed run, those that the file has from its beginning.

        Raises:
            CheckpointError: The file of a resumed run is not there, or belongs to another model.
        """
        if self._path is None:
            self._tensors = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
            return
        if not resumed:
            make_directory(self._path.parent)
            save_safetensors(self._path, {name: p.detach() for name, p in parameters.items()})
        try:
            with safe_open(self._path, framework="pt") as file:
                self._tensors = {name: file.get_tensor(name) for name in parameters}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"cannot read {str(self._path)!r}, the weights that the run began with: {' '.join(str(error).split())}; "
                "start again (overwrite)"
            ) from error
        self._hash = sha256(self._path)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The values of a parameter, on the CPU."""
        return self._tensors[name]

    def state(self) -> dict[str, Any]:
        """The file's hash."""
        return {"start": self._hash}

    def check(self, state: Mapping[str, Any]) -> None:
        """Compare the file with the one that a save was made with.

        Raises:
            CheckpointError: It is another one.
        """
        if state["start"] != self._hash:
            raise CheckpointError(
                f"{str(self._path)!r}, the weights that the run began with, was changed since: start again (overwrite)"
            )
