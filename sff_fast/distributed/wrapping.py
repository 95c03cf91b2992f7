"""DDP and FSDP2 around an adapter's model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from .group import Group

PARALLEL = ("ddp", "fsdp")


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


class Wrapped:
    """A model whose gradients are averaged over the processes.

    Attributes:
        train: Calls a loss: its backward pass averages the gradients.
    """

    def __init__(self, program: Program, train: nn.Module, parallel: str) -> None:
        self._program, self.train, self._parallel = program, train, parallel

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call something else that uses the model, such as a forecast."""
        answer = self._program(call, *arguments)
        if self._parallel == "fsdp":
            self._program.reshard()  # the outermost module stays gathered: parameters would be others than the optimizer's
        return answer

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Whether more backward passes follow before the step: gradients are then averaged by the last one alone."""
        if self._parallel == "fsdp":
            self.train.set_requires_gradient_sync(not more)
            yield
        elif more:
            with self.train.no_sync():
                yield
        else:
            yield


def blocks(model: nn.Module) -> list[nn.Module]:
    """What FSDP2 gathers at a time: the members of the model's outermost lists of modules."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(member for member in child if any(True for _ in member.parameters()))
            else:
                visit(child)

    visit(model)
    return found


def wrap(model: nn.Module, group: Group, parallel: str) -> Wrapped:
    """Let the processes train one model.

    Args:
        model: The adapter's model, the same on every process. With ``"fsdp"`` its parameters are sharded in place.
        group: The processes.
        parallel: ``"ddp"`` (every process has the whole model) or ``"fsdp"`` (each has a part: FSDP2's ``fully_shard`` on
            every block).

    Raises:
        ArgumentError: ``parallel`` is something else.
    """
    program = Program(model)
    if parallel == "ddp":
        devices = [group.device] if group.device.type == "cuda" else None
        return Wrapped(program, nn.parallel.DistributedDataParallel(program, device_ids=devices), parallel)
    if parallel != "fsdp":
        raise ArgumentError(f"parallel must be one of {', '.join(PARALLEL)}, got {parallel!r}")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(group.device.type, (group.size,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    sharded = fully_shard(program, mesh=mesh)
    return Wrapped(sharded, sharded, parallel)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, gathered where it is sharded; every process must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gather_into(target: nn.Module | None, model: nn.Module) -> None:
    """Copy a wrapped model's weights into a plain twin, one tensor at a time; every process must call.

    Args:
        target: The twin, None on processes that keep none.
        model: The model.
    """
    plain = {} if target is None else {**dict(target.named_parameters()), **dict(target.named_buffers())}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values = whole(tensor)
        if target is not None:
            with torch.no_grad():
                plain[name].copy_(values)


def scatter_from(source: nn.Module | None, model: nn.Module, group: Group) -> None:
    """Copy a plain twin's weights, which the first process has, into a wrapped model; every process must call."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    plain = {} if source is None else {**dict(source.named_parameters()), **dict(source.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            values = torch.empty(tensor.shape, dtype=tensor.dtype, device=group.device)
            if source is not None:
                values.copy_(plain[name].detach())
            if isinstance(tensor, DTensor):
                tensor.copy_(distribute_tensor(values, tensor.device_mesh, tensor.placements))
            else:
                dist.broadcast(values, 0)
                tensor.copy_(values)
