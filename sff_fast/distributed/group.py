"""The processes of a job: who they are, and what they tell each other. A process that is alone needs no torch.distributed."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from ..errors import ArgumentError, BackendError, SffFastError

_LOST = ("gloo", "nccl", "connection", "timed out")
"""Words of the messages with which collectives fail when another process is gone."""


@dataclass(frozen=True)
class Group:
    """This process among the others; by default the only one.

    Args:
        rank: Its number, from 0.
        size: Number of processes.
        device: Where it has what it tells the others: the rank's own.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes logs, metrics and models."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum over all processes in float64, the same bits on each."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return self.sum(float(flag)) > 0

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in order of their ranks; anything that can be pickled."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def say(self, value: Any = None) -> Any:
        """What the writing process has."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def lead(self, work: Callable[[], Any]) -> Any:
        """What a function gives in the writing process, which alone calls it; an error that a user can mend is everybody's."""
        if self.size == 1:
            return work()
        answer, error = None, None
        if self.writes:
            try:
                answer = work()
            except (SffFastError, OSError) as caught:
                error = caught
        answer, error = self.say((answer, error))
        if error is not None:
            raise error
        return answer

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def launched() -> bool:
    """Whether this process is one of a job's: torchrun has started it, or it is in a process group already."""
    return dist.is_available() and (dist.is_initialized() or "RANK" in os.environ)


def refuse_several(what: str) -> None:
    """Refuse, under torchrun, what one process does alone.

    Args:
        what: What it is, for the message.

    Raises:
        ArgumentError: There are several processes.
    """
    size = dist.get_world_size() if launched() and dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        raise ArgumentError(f"{what} runs in one process, got {size}: start it without torchrun; finetune is what takes several")


@contextlib.contextmanager
def join(device: str = "auto") -> Iterator[Group]:
    """Join the job that torchrun started; without torchrun a group of this process alone.

    A group that exists already (Lightning, accelerate, the caller's own) is used and left as it is. torchrun's is joined by
    the first call and left when the process ends, since sharded parameters need it until then.

    Args:
        device: ``"auto"`` (CUDA where there is one, the rank's own), ``"cpu"`` or ``"cuda"``.

    Raises:
        ArgumentError: The device names a number, or is not there.
        BackendError: Another process of the job is gone.
    """
    if not launched():
        yield Group()
        return
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(device)
    if kind not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be auto, cpu or cuda with several processes (each takes its own), got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device 'cuda' is not there: torch sees no CUDA device; use auto or cpu")
    own = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        atexit.register(leave)
    group = Group(dist.get_rank(), dist.get_world_size(), own)
    with _others_may_die(group):
        yield group


def leave() -> None:
    """Leave the job, once no sharded model is needed any more; called by itself when the process ends.

    The threads of a process group end with the last that holds it. They must not run into the interpreter's end, where
    they abort the process now and then; so what DTensor's caches hold is let go of too.
    """
    if not dist.is_initialized():
        return
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor.debug import _clear_fast_path_sharding_prop_cache, _clear_sharding_prop_cache

        _clear_sharding_prop_cache()
        _clear_fast_path_sharding_prop_cache()
    dist.destroy_process_group()
    gc.collect()


@contextlib.contextmanager
def _others_may_die(group: Group) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Backends raise plain RuntimeError for a lost peer: only the words tell it from an error of the model.
        if isinstance(error, SffFastError) or not any(word in str(error).lower() for word in _LOST):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"rank {group.rank} of {group.size} lost another process of the job ({reason}): what was saved last is whole; start "
            f"the job again with resume=True (--resume), on any number of processes"
        ) from error
