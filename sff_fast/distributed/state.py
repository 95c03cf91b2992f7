"""Checkpoints of a job through ``torch.distributed.checkpoint``: any number of processes can read them.

A save is a folder ``state/save-000012`` that is renamed into place when every process has written its part; what a killed
process leaves behind has another name. The two newest are kept.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from ..errors import CheckpointError
from ..files import atomic_directory, read_json, save_safetensors, sha256, write_json
from ..optim import FusedAdam, FusedAdamW
from ..training.state import iterate_safetensors
from ..training.weights import load_weights, weights_of
from .group import Group

FORMAT = 1
_NAME = re.compile(r"^save-(\d{6,})$")


class Store:
    """The saves of one job.

    Args:
        directory: The job's ``state`` folder.
        group: The processes.
        keep: How many saves to keep.
    """

    def __init__(self, directory: Path, group: Group, keep: int = 2) -> None:
        self.directory, self.group, self.keep = directory, group, keep

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, content: dict[str, Any], best: nn.Module | None
    ) -> None:
        """Write a save; every process must call.

        Args:
            model: The wrapped model.
            optimizer: Its optimizer, None where nothing was trained yet.
            content: What JSON holds besides, as the first process has it.
            best: A plain model with the best weights, in the first process.
        """
        with contextlib.ExitStack() as stack:
            folder = None
            if self.group.writes:
                self.directory.mkdir(parents=True, exist_ok=True)
                number = max((n for n, _ in self._folders()), default=0) + 1
                folder = stack.enter_context(atomic_directory(self.directory / f"save-{number:06d}"))
            folder = self.group.say(folder)
            tensors = {f"model/{name}": tensor.detach() for name, tensor in _tensors_of(model)}
            if optimizer is not None:
                tensors.update(_optimizer_tensors(model, optimizer))
            dcp.save(tensors, checkpoint_id=folder)
            if self.group.writes:
                save_safetensors(folder / "best.safetensors", weights_of(best))
                files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
                metadata = sha256(folder / ".metadata")
                write_json(folder / "job.json", {"format": FORMAT, "files": files, "metadata": metadata, "content": content})
        for _, old in self._folders()[: -self.keep] if self.group.writes else ():
            shutil.rmtree(old)
        self.group.barrier()

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest save that is whole and its content; None where there is none. Every process must call.

        Raises:
            CheckpointError: There are saves, and none of them is whole.
        """
        found, reasons = None, []
        if self.group.writes:
            for _, folder in reversed(self._folders()):
                try:
                    found = (folder, _check(folder))
                    break
                except CheckpointError as error:
                    reasons.append(str(error))
        found, reasons = self.group.say((found, reasons))
        if found is None and reasons:
            raise CheckpointError(f"no save can be used to resume: {'; '.join(reasons)}; start again (overwrite)")
        if reasons and self.group.writes:
            warnings.warn(f"{'; '.join(reasons)}; the save before, {str(found[0])!r}, is used", stacklevel=2)
        return found

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Put a save into a model and its optimizer, in place; every process must call."""
        metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        wanted: dict[str, torch.Tensor] = {f"model/{name}": tensor.detach() for name, tensor in _tensors_of(model)}
        missing = sorted(wanted.keys() - metadata.keys())
        if missing:
            raise CheckpointError(f"the save {str(folder)!r} lacks {', '.join(missing[:3])}: it belongs to another model")
        states: dict[str, dict[str, torch.Tensor]] = {}
        if optimizer is not None:
            for name, parameter in model.named_parameters():
                prefix = f"optimizer/{name}/"
                for key in (key for key in metadata if key.startswith(prefix)):
                    entry = metadata[key]
                    alike = tuple(entry.size) == tuple(parameter.shape)
                    values = (
                        torch.zeros_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
                        if alike
                        else torch.zeros(entry.size, dtype=entry.properties.dtype)
                    )
                    states.setdefault(name, {})[key.removeprefix(prefix)] = wanted[key] = values
        dcp.load(wanted, checkpoint_id=folder)
        if states:
            numbers = {name: i for i, name in enumerate(_trained(model, optimizer))}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": {numbers[name]: state for name, state in states.items()}, "param_groups": groups})

    def load_best(self, folder: Path, best: nn.Module) -> None:
        """Put the best weights of a save into a plain model."""
        load_weights(best, iterate_safetensors(folder / "best.safetensors"))

    def _folders(self) -> list[tuple[int, Path]]:
        if not self.directory.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.directory.iterdir() if (match := _NAME.match(path.name))]
        return sorted(found)


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """States by the name of their parameter: of the fused optimizers as torch.optim keeps them, which can be cut anywhere."""
    ours = isinstance(optimizer, (FusedAdam, FusedAdamW))
    state = (optimizer.to_torch_state_dict() if ours else optimizer.state_dict())["state"]
    return {
        f"optimizer/{name}/{key}": value
        for number, name in enumerate(_trained(model, optimizer))
        for key, value in state.get(number, {}).items()
    }


def _check(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / "job.json", error=CheckpointError)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(f"the save {str(folder)!r} is no save of a job in format {FORMAT}")
    for name, size in raw["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"the save {str(folder)!r} is damaged: {name} is missing or has another size than {size}")
    if sha256(folder / ".metadata") != raw["metadata"]:
        raise CheckpointError(f"the save {str(folder)!r} is damaged: .metadata does not match its hash")
    return raw["content"]
