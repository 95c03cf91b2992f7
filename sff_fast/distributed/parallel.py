"""One training loop for any number of processes: what it asks, answered by one process alone, DDP or FSDP2."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ArgumentError
from ..shards import is_sharded
from ..smooth import remember_smoothing, smoothing_of
from .group import Group, join, launched
from .weights import gather_into


class Part(NamedTuple):
    """What a process takes of a batch at a time.

    Args:
        indices: The windows; never empty.
        share: The share of the batch that these windows count as in its mean: 0 where the process takes one only to keep
            step with the others.
        scale: What the part's mean loss is multiplied with, so that the gradients that arrive are those of the batch's mean.
        number: Which part of the batch it is, from 0.
    """

    indices: torch.Tensor
    share: float
    scale: float
    number: int


class Program(nn.Module):
    """Calls whatever is given, with the model's parameters in place.

    Adapters reach into their models; through this every call is a forward pass of the outermost module, whose hooks
    gather parameters and prepare gradients.

    Args:
        model: The adapter's model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)


class Parallel:
    """The processes of a run, each with a whole model that nobody has wrapped; by default one process.

    Args:
        group: The processes.
    """

    def __init__(self, group: Group | None = None) -> None:
        self.group = Group() if group is None else group

    def place(self, adapter: Any) -> None:
        """Spread the model, which is on its device, over the processes."""

    def training(self, adapter: Any, example: Any) -> contextlib.AbstractContextManager[None]:
        """A phase of training with the parameters that require a gradient now.

        Args:
            adapter: The adapter.
            example: A batch of one window.
        """
        return contextlib.nullcontext()

    def loss(self, adapter: Any, batch: Any) -> torch.Tensor:
        """The adapter's loss, in a way that backward passes of all processes give the gradient of their mean."""
        return adapter.loss(batch)

    def accumulating(self, more: bool) -> contextlib.AbstractContextManager[None]:
        """Around a forward and backward pass: whether more of them follow before the step, or this is the last one."""
        return contextlib.nullcontext()

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call something else that uses the model, such as a forecast; all processes do."""
        return work(*arguments)

    def save(self, adapter: Any, directory: Path) -> None:
        """Write the model in the family's layout; all processes call."""
        self.group.lead(lambda: adapter.save(directory, overwrite=True))

    def parts(self, indices: torch.Tensor, micro_batch: int) -> list[Part]:
        """What this process takes of a batch: neighbours, in parts of at most ``micro_batch`` windows.

        Every process gets the same number of parts, whatever it gets of the batch.
        """
        group, windows = self.group, len(indices)
        if group.size == 1:
            parts = indices.split(micro_batch)
            return [Part(part, len(part) / windows, len(part) / windows, i) for i, part in enumerate(parts)]
        count = math.ceil(math.ceil(windows / group.size) / micro_batch)
        cut = torch.tensor_split(torch.tensor_split(indices, group.size)[group.rank], count)
        shares = [len(part) / windows for part in cut]
        # DDP and FSDP average over processes: times their number it is the sum.
        return [Part(p if len(p) else indices[:1], s, s * group.size, i) for i, (p, s) in enumerate(zip(cut, shares))]

    def each(self, batches: Sequence[torch.Tensor], work: Callable[[torch.Tensor], Any]) -> Iterator[tuple[torch.Tensor, Any]]:
        """Every batch with what ``work`` makes of it, in order, in every process; each is worked on by one of them.

        What follows of it is so the same everywhere, with the bits that one process alone would get.

        Args:
            batches: Windows, the same batches in every process.
            work: Uses the model, in whatever process alike; its answers are on the CPU and can be pickled.
        """
        for turn in range(0, len(batches), self.group.size):
            # A process without a batch of its own works too: parameters are gathered by all processes or by none.
            mine = batches[min(turn + self.group.rank, len(batches) - 1)]
            answers = self.group.gather(self.call(work, mine))
            yield from zip(batches[turn : turn + self.group.size], answers)


class DataParallel(Parallel):
    """DDP: every process has the whole model."""

    _module: nn.parallel.DistributedDataParallel | None = None

    @contextlib.contextmanager
    def training(self, adapter: Any, example: Any) -> Iterator[None]:
        devices = [self.group.device] if self.group.device.type == "cuda" else None
        unused = self.group.any(_leaves_unused(adapter, example))
        self._module = nn.parallel.DistributedDataParallel(
            Program(adapter.model), device_ids=devices, find_unused_parameters=unused
        )
        try:
            yield
        finally:
            self._module = None

    def loss(self, adapter: Any, batch: Any) -> torch.Tensor:
        return self._module(adapter.loss, batch)

    def accumulating(self, more: bool) -> contextlib.AbstractContextManager[None]:
        return self._module.no_sync() if more else contextlib.nullcontext()


class FullySharded(Parallel):
    """FSDP2: parameters, gradients and optimizer states are sharded; the blocks of a model are gathered one at a time.

    The writing process keeps a whole copy of the weights on its host, in which the family's own layout is written.
    """

    _program: nn.Module | None = None
    _twin: Any = None

    def place(self, adapter: Any) -> None:
        """Shard the model in place.

        Raises:
            ArgumentError: It is sharded already.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if any(is_sharded(parameter) for parameter in adapter.model.parameters()):
            raise ArgumentError("parallel='fsdp' shards the model itself, and it is sharded already: load it anew")
        if self.group.writes:
            self._twin = copy.deepcopy(adapter)
            self._twin.model.to("cpu")
        mesh = init_device_mesh(self.group.device.type, (self.group.size,))
        for block in blocks(adapter.model):
            fully_shard(block, mesh=mesh)
        self._program = fully_shard(Program(adapter.model), mesh=mesh)
        for module in self._program.modules():
            if isinstance(module, FSDPModule):
                # The memory that parameters are gathered into is made the first time. It must not be a forecast that does so
                # in inference mode, as some packages' do: training could not write into it.
                module.unshard()
                module.reshard()

    def loss(self, adapter: Any, batch: Any) -> torch.Tensor:
        with warnings.catch_warnings():
            if type(adapter).__module__.startswith("sff_fast."):
                # It warns of what an operation in place could do to a block's answer. Ours have none: a test of each family
                # compares with DDP. Other people's families are warned.
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            return self._program(adapter.loss, batch)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        self._program.set_requires_gradient_sync(not more)
        yield

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        answer = self._program(work, *arguments)
        self._program.reshard()  # the outermost module stays gathered: parameters would be others than the optimizer's
        return answer

    def save(self, adapter: Any, directory: Path) -> None:
        gather_into(None if self._twin is None else self._twin.model, adapter.model)
        if self._twin is not None:
            remember_smoothing(self._twin.model, smoothing_of(adapter.model))
        self.group.lead(lambda: self._twin.save(directory, overwrite=True))


KINDS = {"ddp": DataParallel, "fsdp": FullySharded}


@contextlib.contextmanager
def processes(parallel: str | None, device: str) -> Iterator[Parallel]:
    """The processes of a run: those that torchrun has started, or this one alone.

    Args:
        parallel: ``"ddp"`` or ``"fsdp"``; None is ``"ddp"`` where there are several processes.
        device: As for :func:`join`.

    Raises:
        ArgumentError: ``parallel`` is something else, or was given where there is no job.
        BackendError: Another process of the job is gone.
    """
    if parallel is not None and parallel not in KINDS:
        raise ArgumentError(f"parallel must be one of {', '.join(KINDS)}, got {parallel!r}")
    if not launched():
        if parallel is not None:
            raise ArgumentError(
                f"parallel={parallel!r} needs several processes, got one: start with torchrun --nproc-per-node N -m sff_fast.cli"
            )
        yield Parallel()
        return
    with join(device) as group:
        yield Parallel(group) if group.size == 1 else KINDS[parallel or "ddp"](group)


def blocks(model: nn.Module) -> list[nn.Module]:
    """What FSDP2 gathers at a time: the modules in the model's outermost lists of modules."""
    found: list[nn.Module] = []

    def visit(module: nn.Module, listed: bool) -> None:
        for child in module.children():
            container = isinstance(child, (nn.ModuleList, nn.ModuleDict))
            if listed and not container:
                if next(child.parameters(), None) is not None:
                    found.append(child)
            else:
                visit(child, listed=listed or isinstance(child, nn.ModuleList))

    visit(model, listed=False)
    return found


def _leaves_unused(adapter: Any, example: Any) -> bool:
    """Whether the loss leaves parameters out, found by one backward pass; DDP then has to look for them in every step."""
    model = adapter.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    adapter.loss(example).backward()
    unused = any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])
    return unused
