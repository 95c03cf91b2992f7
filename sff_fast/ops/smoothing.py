"""``sff_fast::smooth_``: one bucket of parameters, smoothed in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sff_fast import backends
from sff_fast.errors import ArgumentError
from sff_fast.plan import InitPlan
from sff_fast.smooth import ROUNDINGS
from sff_fast.stream import check_seed
from sff_fast.table import DTYPES, TABLE, TASK_DTYPE, BoxTask, build, pack


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Arguments of ``sff_fast::smooth_`` besides the parameters; they stay the same while shapes, dtypes and the plan do.

    Attributes:
        table: uint8 on the CPU: the kernel table with numbers of tensors where addresses belong.
        values: Draws that are stored, float32 on the CPU.
    """

    table: torch.Tensor
    values: list[torch.Tensor]


def bucket(
    parameters: Mapping[str, torch.Tensor], plan: InitPlan, shrink: float, perturb: float, seed: int, rounding: str = "nearest"
) -> Bucket:
    """Describe the smoothing of some parameters: ``shrink * theta_pre + perturb * theta_rand``.

    Args:
        parameters: The plan's name of each parameter, and a contiguous tensor of its shape and dtype. Values do not matter.
        plan: The init plan.
        shrink: Factor of what is there.
        perturb: Factor of the random draw.
        seed: Seed of the random stream.
        rounding: ``"nearest"`` (default) or ``"stochastic"``.

    Returns:
        What goes with ``list(parameters.values())`` into ``torch.ops.sff_fast.smooth_``.

    Raises:
        ArgumentError: A parameter is not contiguous, or ``rounding`` or ``seed`` is none.
        PlanError: The plan lacks a parameter, or has it in another shape.
    """
    if rounding not in ROUNDINGS:
        raise ArgumentError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    key = check_seed(seed)
    _check_contiguous(list(parameters.values()))
    plan.check(dict(parameters), subset=True)
    rows, values = [], []
    for number, (name, parameter) in enumerate(parameters.items()):
        tasks = build([(plan[name], parameter, shrink, perturb)], plan, key, rounding)
        part = pack(tasks).view(TASK_DTYPE)
        part["data"] = number
        for row, task in zip(part, tasks):
            if task.table is not None:
                row["table"] = _number(values, task.table)
        rows.append(part)
    packed = np.concatenate([np.zeros(0, TASK_DTYPE), *rows])
    return Bucket(torch.from_numpy(packed.view(np.uint8)), values)


def _number(values: list[torch.Tensor], value: torch.Tensor) -> int:
    """Where ``value`` stands among ``values``; it is appended where it does not."""
    for i, known in enumerate(values):
        if known is value:
            return i
    values.append(value)
    return len(values) - 1


def _check_contiguous(params: Sequence[torch.Tensor]) -> None:
    for i, parameter in enumerate(params):
        if not parameter.is_contiguous():
            raise ArgumentError(f"params[{i}] has the strides {tuple(parameter.stride())}: expected a contiguous tensor")


@torch.library.custom_op("sff_fast::smooth_", mutates_args=("params",))
def smooth_(params: Sequence[torch.Tensor], table: torch.Tensor, values: Sequence[torch.Tensor]) -> None:
    """Smooth contiguous parameters in place.

    Args:
        params: The parameters, all on one device.
        table: ``Bucket.table`` of their shapes and dtypes.
        values: ``Bucket.values``.

    Raises:
        ArgumentError: The table belongs to other parameters, or these are not on one device.
    """
    if not len(table):
        return
    tasks = _tasks(params, table, values)
    devices = {parameter.device for parameter in params}
    if len(devices) != 1:
        raise ArgumentError(f"params: expected tensors on one device, got {', '.join(sorted(map(str, devices)))}: call once each")
    _, run = backends.choose("auto", devices.pop())
    run(tasks, None)


@smooth_.register_fake
def _(params: Sequence[torch.Tensor], table: torch.Tensor, values: Sequence[torch.Tensor]) -> None:
    return None


def _tasks(params: Sequence[torch.Tensor], packed: torch.Tensor, values: Sequence[torch.Tensor]) -> list[BoxTask]:
    """The boxes that a bucket's table describes, on these tensors."""
    width = TASK_DTYPE.itemsize
    if packed.dtype != torch.uint8 or packed.device.type != "cpu" or packed.dim() != 1 or len(packed) % width:
        raise ArgumentError(
            f"table must be Bucket.table, uint8 on the CPU of a multiple of {width} bytes, got {packed.dtype} of "
            f"{tuple(packed.shape)} on {packed.device}"
        )
    _check_contiguous(params)
    tasks = []
    for row in packed.numpy().view(TASK_DTYPE):
        number, rank = int(row["data"]), int(row["rank"])
        if number >= len(params):
            raise ArgumentError(f"params: expected at least {number + 1} tensors, as the table has them, got {len(params)}")
        parameter = params[number]
        if DTYPES.get(parameter.dtype) != row["dtype"] or parameter.numel() != row["memory_elements"]:
            raise ArgumentError(
                f"params[{number}] is {parameter.dtype} of {parameter.numel()} elements, the table was made for "
                f"{row['memory_elements']} elements of {next(d for d, code in DTYPES.items() if code == row['dtype'])}"
            )
        stored = row["distribution"] == TABLE
        tasks.append(
            BoxTask(
                parameter.detach(),
                int(row["distribution"]),
                tuple(row["p"].tolist()),
                *(tuple(row[name][:rank].tolist()) for name in ("size", "memory_strides", "draw_strides", "logical_strides")),
                *(int(row[name]) for name in ("memory_offset", "draw_offset", "logical_offset")),
                *(int(row[name]) for name in ("seed", "stream", "round_seed", "round_stream")),
                float(row["shrink"]),
                float(row["perturb"]),
                bool(row["rounding"]),
                values[int(row["table"])] if stored else None,
            )
        )
    return tasks
