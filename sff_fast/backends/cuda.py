"""The compiled CUDA kernels: whether they can run here, and how a kernel table reaches a GPU.

A table is cut into chunks on the host once (:func:`prepare`) and lies on the device from then on; running it is one kernel
launch for each dtype, without allocation or synchronisation, so that it may be captured in a CUDA graph.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from sff_fast.errors import ArgumentError, BackendError
from sff_fast.table import TASK_DTYPE, BoxTask, pack

_ABSENT = Path(__file__).resolve().parents[1] / "_cuda_absent.txt"
_KEPT = 8
_prepared: OrderedDict[tuple[str, bytes], Prepared] = OrderedDict()
_captured: list[Prepared] = []

try:
    from sff_fast import _cuda

    _why_absent = ""
except ImportError as error:
    _cuda = None
    _reason = _ABSENT.read_text().strip() if _ABSENT.is_file() else ""
    _why_absent = f"not compiled ({_reason or error}): `SFF_FAST_CUDA=on pip install --force-reinstall .` with nvcc on the PATH"


def why_absent() -> str:
    """Why the kernels cannot be used on this machine, empty where they can."""
    if _cuda is None:
        return _why_absent
    if TASK_DTYPE.itemsize != _cuda.TASK_BYTES:
        return f"compiled from another version (table entries of {_cuda.TASK_BYTES} bytes, not {TASK_DTYPE.itemsize}): reinstall"
    count, error = _cuda.devices()
    if error:
        return f"compiled for {_cuda.ARCHITECTURES}, but there is no usable GPU or driver ({error})"
    if not count:
        return f"compiled for {_cuda.ARCHITECTURES}, but this machine shows no GPU"
    if not torch.cuda.is_available():
        return f"compiled for {_cuda.ARCHITECTURES}, but this torch ({torch.__version__}) cannot use a GPU: install one that can"
    return ""


def describe() -> str:
    """The architectures that the kernels are compiled for and the GPUs, such as ``"sm_80 sm_90 sm_100, 2 GPUs"``."""
    count, _ = _cuda.devices()
    return f"{_cuda.ARCHITECTURES}, {count} GPU{'s' if count > 1 else ''}"


def check_device(device: torch.device) -> None:
    """Refuse a GPU that the kernels cannot run on.

    Raises:
        BackendError: Its architecture is not among the compiled ones; the message says what to do.
    """
    why = _cuda.why_not(index(device))
    if why:
        major, minor = torch.cuda.get_device_capability(device)
        raise BackendError(
            f"{device} is of architecture sm_{major}{minor}, the CUDA kernels are compiled for {_cuda.ARCHITECTURES} and later "
            f"({why}): use backend='reference'"
        )


def index(device: torch.device) -> int:
    """The number of a GPU; one without a number is torch's current one."""
    return torch.cuda.current_device() if device.index is None else device.index


class Prepared:
    """A kernel table on its device, ready to run any number of times.

    Attributes:
        device: The GPU.
        launches: Kernel launches that one run takes.

    Args:
        tasks: Disjoint boxes, all on one GPU. Their parameters have to live for as long as this is run, as the table holds
            addresses and does not keep the memory from being freed.

    Raises:
        ArgumentError: The boxes are not all on one GPU.
        BackendError: A CUDA graph is being captured, which could not hold the upload of the table, or CUDA refused the kernels.
    """

    def __init__(self, tasks: Sequence[BoxTask]) -> None:
        devices = {task.tensor.device for task in tasks}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            raise ArgumentError(f"tasks: expected boxes on one GPU, got {', '.join(sorted(map(str, devices))) or 'none'}")
        (self.device,) = devices
        if torch.cuda.is_current_stream_capturing():
            raise BackendError(
                f"backend='cuda' on {self.device}: the table is not on the device yet, and a CUDA graph is being captured: "
                f"run the same call once before the capture"
            )
        moved: dict[int, torch.Tensor] = {}
        for task in tasks:
            if task.table is not None and id(task.table) not in moved:
                moved[id(task.table)] = task.table.to(self.device)
        tasks = [task if task.table is None else dataclasses.replace(task, table=moved[id(task.table)]) for task in tasks]
        self._values = tuple(moved.values())
        self._table = _cuda.Table(pack(tasks))
        try:
            self._table.load(index(self.device))
        except RuntimeError as error:
            raise BackendError(f"backend='cuda' on {self.device}: {error}") from error
        self._image = torch.from_numpy(self._table.image()).to(self.device)
        self.launches = self._table.launches

    def run(self) -> None:
        """Run the table in place, in order of torch's current stream of the device.

        Under the capture of a CUDA graph nothing but the launches is recorded, and the table is kept for as long as the
        process lives, since a replay reads it.

        Raises:
            BackendError: CUDA refused a launch; the message has the error's name.
        """
        stream = torch.cuda.current_stream(self.device)
        try:
            self._table.launch(self._image.data_ptr(), index(self.device), stream.cuda_stream)
        except RuntimeError as error:
            raise BackendError(f"backend='cuda' on {self.device}: {error}") from error
        if torch.cuda.is_current_stream_capturing():
            _captured.append(self)
        else:
            for tensor in (self._image, *self._values):
                tensor.record_stream(stream)


def prepare(tasks: Sequence[BoxTask]) -> Prepared:
    """The table of some boxes on their GPU, taken from the last few that were run where it is the same.

    Args:
        tasks: Disjoint boxes, all on one GPU.

    Returns:
        What :meth:`Prepared.run` runs.
    """
    if any(task.table is not None for task in tasks):
        return Prepared(tasks)  # stored values are no part of the table that is compared
    key = (str(tasks[0].tensor.device), hashlib.blake2b(pack(tasks), digest_size=16).digest())
    if key not in _prepared:
        _prepared[key] = Prepared(tasks)
        while len(_prepared) > _KEPT:
            _prepared.popitem(last=False)
    _prepared.move_to_end(key)
    return _prepared[key]


def run(tasks: Sequence[BoxTask], threads: int | None = None) -> int:
    """Run a kernel table in place: one launch for each dtype.

    Args:
        tasks: Disjoint boxes, all on one GPU.
        threads: For the CPU alone; not used.

    Returns:
        1: the CPU threads that took part.

    Raises:
        BackendError: The table would have to be made while a CUDA graph is captured, or CUDA refused a launch.
    """
    if tasks:
        prepare(tasks).run()
    return 1
