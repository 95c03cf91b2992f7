"""The optimizer's compiled CUDA kernels: how a step's table reaches a GPU.

Where chunks begin and end depends on sizes alone: they are cut once and lie on the device. A step's table, with its addresses and
coefficients, is sent there through pinned memory, in order of the current stream. Nothing waits for the device.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from sff_fast.backends import cuda
from sff_fast.errors import BackendError

from .task import ADAMW_DTYPE, OPTIONS_DTYPE

_KEPT = 32
_SHAPE = ("elements", "param_dtype", "state_type", "storing")
_plans: OrderedDict[tuple[torch.device, bytes], Plan] = OrderedDict()


def why_absent() -> str:
    """Why the kernels cannot be used on this machine, empty where they can."""
    why = cuda.why_absent()
    if why:
        return why
    compiled = (cuda._cuda.ADAMW_TASK_BYTES, cuda._cuda.ADAMW_OPTIONS_BYTES)
    expected = (ADAMW_DTYPE.itemsize, OPTIONS_DTYPE.itemsize)
    if compiled != expected:
        return f"compiled from another version (optimizer entries of {compiled} bytes, not {expected}): reinstall"
    return ""


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Plan:
    """The chunks of tables of the same shapes, on their device.

    Args:
        table: One such table.
        device: The GPU.
    """

    def __init__(self, table: np.ndarray, device: torch.device) -> None:
        self.device = device
        self._plan = cuda._cuda.AdamWPlan(table.view(np.uint8))
        self._image = torch.from_numpy(self._plan.image()).to(device)

    def upload(self, table: np.ndarray) -> torch.Tensor:
        """The checked table on the device, in order of its current stream."""
        packed = table.view(np.uint8)
        cuda._cuda.check_adamw(packed)
        return torch.from_numpy(packed).pin_memory().to(self.device, non_blocking=True)

    @property
    def pieces(self) -> int:
        """Partial sums of squares that clipping adds up."""
        return self._plan.pieces

    def write(self, table: np.ndarray, packed: np.ndarray, to: torch.Tensor) -> None:
        """Check a table and write bytes to the device, by launches that carry them."""
        cuda._cuda.check_adamw(table.view(np.uint8))
        stream = torch.cuda.current_stream(self.device)
        self._call(cuda._cuda.write, packed, to.data_ptr(), cuda.index(self.device), stream.cuda_stream)

    def prepare(
        self,
        tasks: torch.Tensor,
        options: torch.Tensor,
        count: int,
        loss_scale: torch.Tensor | None,
        found_inf: torch.Tensor | None,
    ) -> None:
        """Launch what counts the steps of tables on the device and computes their coefficients there."""
        stream = torch.cuda.current_stream(self.device)
        numbers = (count, _address(loss_scale), _address(found_inf))
        self._call(
            cuda._cuda.prepare, tasks.data_ptr(), options.data_ptr(), *numbers, cuda.index(self.device), stream.cuda_stream
        )
        self._record(tasks, stream)

    def step(self, tasks: torch.Tensor, factor: torch.Tensor | None, found_inf: torch.Tensor | None = None) -> None:
        """Launch the step: one kernel for each dtype, state type and way to store; none steps where ``found_inf`` is not 0."""
        stream = torch.cuda.current_stream(self.device)
        addresses = (tasks.data_ptr(), self._image.data_ptr(), _address(factor))
        self._call(self._plan.step, *addresses, cuda.index(self.device), stream.cuda_stream, _address(found_inf))
        self._record(self._image, stream)

    def clip(self, tasks: torch.Tensor, grad_scale: float, max_norm: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Launch the gradient's norm.

        Returns:
            The norm (float64), the factor of clipping (float32) and the sums of squares that they come from, on the device.
        """
        sums = torch.empty(self.pieces, dtype=torch.float64, device=self.device)
        clipped = torch.empty(cuda._cuda.CLIPPED_BYTES, dtype=torch.uint8, device=self.device)
        return (*self.clip_into(tasks, sums, clipped, grad_scale, max_norm), sums)

    def clip_into(
        self,
        tasks: torch.Tensor,
        sums: torch.Tensor,
        clipped: torch.Tensor,
        grad_scale: float,
        max_norm: float,
        loss_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Launch the gradient's norm into memory that is there; ``loss_scale`` on the device takes ``grad_scale``'s place.

        Returns:
            The norm (float64) and the factor of clipping (float32), on the device.
        """
        stream = torch.cuda.current_stream(self.device)
        numbers = (grad_scale, max_norm, clipped.data_ptr())
        addresses = (tasks.data_ptr(), self._image.data_ptr(), sums.data_ptr())
        self._call(self._plan.clip, *addresses, *numbers, cuda.index(self.device), stream.cuda_stream, _address(loss_scale))
        for tensor in (self._image, sums, clipped):
            self._record(tensor, stream)
        return clipped[:8].view(torch.float64)[0], clipped[8:12].view(torch.float32)[0]

    @staticmethod
    def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Keep memory from being given to others before the stream is done with it; what a graph reads is kept by its owner."""
        if not torch.cuda.is_current_stream_capturing():
            tensor.record_stream(stream)

    def _call(self, function, *arguments: object) -> None:
        try:
            function(*arguments)
        except RuntimeError as error:
            raise BackendError(f"the optimizer on {self.device}: {error}") from error


def plan_of(table: np.ndarray, device: torch.device, capturable: bool = False) -> Plan:
    """The chunks of a table's shapes, from the last ones that were used where they are the same.

    Raises:
        BackendError: A CUDA graph is being captured, and the step is not capturable (a replay would repeat the coefficients of
            one step) or there was none outside of the capture.
    """
    capturing = torch.cuda.is_current_stream_capturing()
    if capturing and not capturable:
        raise BackendError(
            f"the optimizer on {device}: a CUDA graph is being captured, and replays would repeat one step's bias correction: "
            f"make the optimizer with capturable=True, or call step() outside of the capture"
        )
    shape = b"".join(
        [*(np.ascontiguousarray(table[name]).tobytes() for name in _SHAPE), (table["max_exp_avg_sq"] != 0).tobytes()]
    )
    key = (device, shape)
    if key not in _plans:
        if capturing:
            raise BackendError(
                f"the optimizer on {device}: a CUDA graph is being captured, and the chunks of its parameters are not on the "
                f"device yet: call step() once outside of the capture before"
            )
        cuda.check_device(device)
        _plans[key] = Plan(table, device)
        while len(_plans) > _KEPT:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    return _plans[key]


def step(table: np.ndarray, device: torch.device) -> None:
    """One step of every parameter of a table, in place."""
    plan = plan_of(table, device)
    plan.step(plan.upload(table), None)


def clipped_step(table: np.ndarray, device: torch.device, grad_scale: float, max_norm: float) -> torch.Tensor:
    """One step with gradients clipped to ``max_norm``; returns their norm, a float64 tensor on the device."""
    plan = plan_of(table, device)
    tasks = plan.upload(table)
    norm, factor, _ = plan.clip(tasks, grad_scale, max_norm)
    plan.step(tasks, factor)
    return norm


def sum_of_squares(table: np.ndarray, device: torch.device) -> float:
    """Sum of squares of all gradients of a table; waits for the device."""
    plan = plan_of(table, device)
    _, _, sums = plan.clip(plan.upload(table), 1.0, 1.0)
    in_order = np.add.accumulate(np.concatenate([[0.0], sums.cpu().numpy()]))  # as the kernels add them
    return float(in_order[-1])
