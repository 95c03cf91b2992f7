"""The processes of a job: who they are, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..errors import BackendError

_LOST = ("gloo", "nccl", "connection", "timed out", "store")
"""Words of the messages with which collectives fail when another process is gone."""


@dataclass(frozen=True)
class Group:
    """This process among the others.

    Args:
        rank: Its number, from 0.
        size: Number of processes.
        device: Where its model lies.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes logs, metrics and models."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same bits on each; on the CPU."""
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in order of their ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def say(self, value: Any = None) -> Any:
        """What the writing process has."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier()


@contextlib.contextmanager
def join(device: str = "auto") -> Iterator[Group]:
    """Join the job that torchrun started; without torchrun a group of this process alone.

    A group that exists already (Lightning, accelerate) is used and left as it is.

    Args:
        device: ``"auto"`` (CUDA where there is one, the rank's own), ``"cpu"`` or ``"cuda"``.

    Raises:
        BackendError: Another process of the job is gone.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    own = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    made = not dist.is_initialized()
    if made and "RANK" in os.environ:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    elif made:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    if kind == "cuda":
        torch.cuda.set_device(own)
    group = Group(dist.get_rank(), dist.get_world_size(), own)
    try:
        with _others_may_die(group):
            yield group
    finally:
        if made:
            dist.destroy_process_group()


@contextlib.contextmanager
def _others_may_die(group: Group) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Backends raise plain RuntimeError for a lost peer: only the words tell it from an error of the model.
        if isinstance(error, BackendError) or not any(word in str(error).lower() for word in _LOST):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"rank {group.rank} of {group.size} lost another process of the job ({reason}): what was saved last is whole; start "
            f"the job again with resume=True, on any number of processes"
        ) from error
