"""Parameters of one group and dtype whose states lie flat in memory, and their part of the kernel table.

Parameters are reached by their addresses, which the table holds, wherever they lie. Every step checks these; a parameter
that moved (``p.data = ...``) is found again.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sff_fast.errors import ArgumentError
from sff_fast.stream import ROUND, stream_id

from . import flat, kernels, reference, shards
from .state import assign, check_state, state_shapes
from .task import (
    ADAMW_DTYPE,
    COMPENSATED,
    NEAREST,
    OPTIONS_DTYPE,
    PARAM_DTYPES,
    STATE_TYPES,
    STOCHASTIC,
    set_coefficients,
    set_options,
)

_said_moved: set[str] = set()


def is_dense(p: torch.Tensor) -> bool:
    """Whether a tensor's elements fill one stretch of memory without gaps or overlap."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(p.stride(), p.shape) if size != 1):
        if stride != expected:
            return p.numel() == 0
        expected *= size
    return True


def check_parameter(label: str, p: torch.Tensor, group: Mapping[str, object]) -> None:
    """Refuse a parameter that the optimizer cannot run.

    Raises:
        ArgumentError: Naming the parameter.
    """
    if is_traceable_wrapper_subclass(p) and not shards.is_sharded(p):
        raise ArgumentError(
            f"parameter {label} is a {type(p.data).__name__}: expected an ordinary tensor or a DTensor, "
            "give others to torch.optim.AdamW"
        )
    if shards.has_pending_sum(p):
        raise ArgumentError(
            f"parameter {label} is a DTensor with the placements {tuple(p.placements)}: expected Shard and Replicate alone"
        )
    p = shards.local(p)
    if p.layout is not torch.strided or p.dtype not in PARAM_DTYPES:
        kind = p.dtype if p.layout is torch.strided else p.layout
        raise ArgumentError(
            f"parameter {label} is {kind}: expected dense float32, bfloat16 or float16, give others to torch.optim.AdamW"
        )
    if not is_dense(p):
        raise ArgumentError(f"parameter {label} has gaps or overlaps in memory (strides {p.stride()}): make it contiguous")
    if not p.is_contiguous() and (group["state_dtype"] == "int8" or group["stochastic_rounding"]):
        raise ArgumentError(
            f"parameter {label} is not contiguous: state_dtype='int8' and stochastic_rounding go by the logical order of "
            f"elements: make it contiguous, or use float32 or bfloat16 states and nearest rounding"
        )


class Bucket:
    """Some parameters of one group, dtype, device and layout.

    Args:
        group: The parameter group; its options are read at every step.
        params: The parameters; of a DTensor this process's shard is what everything here is about.
        labels: For each its name, or its number in the optimizer as text.
    """

    def __init__(self, group: dict[str, object], params: Sequence[torch.Tensor], labels: Sequence[str]) -> None:
        self.group = group
        self.params = list(params)
        self.labels = list(labels)
        parts = [shards.local(p) for p in params]
        self.dtype, self.device, self.layout = parts[0].dtype, parts[0].device, shards.layout_of(params[0])
        self.amsgrad, self.capturable = bool(group["amsgrad"]), bool(group.get("capturable"))
        self.steps = torch.zeros(len(params), dtype=torch.float32, device=self.device if self.capturable else "cpu")
        self.storing = NEAREST
        if self.dtype != torch.float32 and group["compensation"] == "kahan":
            self.storing = COMPENSATED
        elif self.dtype == torch.bfloat16 and group["stochastic_rounding"]:
            self.storing = STOCHASTIC
        self._elements = [p.numel() for p in parts]
        self._contiguous = [p.is_contiguous() for p in parts]
        self._strides = [p.stride() for p in parts]
        self._shapes = [p.shape for p in parts]
        self._views: dict[int, dict[str, torch.Tensor]] = {}
        self._allocate()
        self._make_table()

    @property
    def native(self) -> bool:
        """Whether the compiled kernels run this bucket."""
        return kernels.available(self.home)

    @property
    def home(self) -> torch.device:
        """Where the states lie and the step runs."""
        return self.device

    def _allocate(self) -> None:
        """Flat states, every parameter's part beginning at a multiple of 64 elements."""
        compensated = self.storing == COMPENSATED
        parts = [state_shapes(n, self.dtype, self.group["state_dtype"], self.amsgrad, compensated) for n in self._elements]
        self.flat: dict[str, torch.Tensor] = {}
        self._parts: list[dict[str, torch.Tensor]] = [{} for _ in parts]
        for name, (_, dtype) in parts[0].items():
            sizes = [part[name][0] for part in parts]
            starts = flat.starts_of(sizes)
            self.flat[name] = flat.zeros(starts[-1], dtype, self.home)
            for part, start, size in zip(self._parts, starts, sizes):
                part[name] = self.flat[name][start : start + size]

    def _make_table(self) -> None:
        table = np.zeros(len(self.params), ADAMW_DTYPE)
        table["param"] = self._addresses()
        table["elements"] = self._elements
        table["param_dtype"] = PARAM_DTYPES[self.dtype]
        table["state_type"] = STATE_TYPES[self.group["state_dtype"]]
        table["storing"] = self.storing
        if self.storing == STOCHASTIC:
            labels = [shards.label_of(label, p) for label, p in zip(self.labels, self.params)]
            table["round_stream"] = [stream_id(label, ROUND) for label in labels]
        for name in self.flat:
            table[name] = [part[name].data_ptr() for part in self._parts]
        self.table = table

    def _addresses(self) -> list[int]:
        """Where the step finds the parameters."""
        return [p.data_ptr() for p in (self.params if self.layout is None else map(shards.local, self.params))]

    def _stepped(self, i: int) -> torch.Tensor:
        """The tensor that the step changes for parameter i."""
        return shards.local(self.params[i]).detach()

    def state(self, i: int) -> dict[str, torch.Tensor]:
        """The state of parameter i: views of the flat memory in the parameter's shape, the same ones every time."""
        if i in self._views:
            return dict(self._views[i])
        state = {"step": self.steps[i]}
        for name, part in self._parts[i].items():
            scale = name.endswith("_scale")
            state[name] = part if scale else part.as_strided(self._shapes[i], self._strides[i], part.storage_offset())
        self._views[i] = state
        return dict(state)

    def holds(self, i: int, state: Mapping[str, torch.Tensor]) -> bool:
        """Whether a state is that of parameter i here, and not tensors that somebody put in their place."""
        views = self._views.get(i)
        return views is not None and len(views) == len(state) and all(map(operator.is_, views.values(), map(state.get, views)))

    def load(self, i: int, source: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take over a state of any precision.

        Returns:
            The state of parameter i.
        """
        source = {name: shards.local(value) for name, value in source.items()}
        check_state(self.labels[i], self._shapes[i], source, self.amsgrad)
        state = self.state(i)
        state["step"].fill_(float(source["step"]))
        assign({name: values for name, values in state.items() if name != "step"}, source)
        return state

    def clear(self, i: int) -> dict[str, torch.Tensor]:
        """Parameter i before its first step."""
        state = self.state(i)
        for values in state.values():
            values.zero_()
        return state

    def gradients(self) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Which parameters have a gradient, and these gradients in the parameters' order of memory.

        Raises:
            ArgumentError: A gradient or parameter is not what it was or must be; nothing has changed then.
        """
        active, grads = [], []
        dtype, device = self.dtype, self.device
        for i, (p, shape, strides, contiguous) in enumerate(zip(self.params, self._shapes, self._strides, self._contiguous)):
            grad = p.grad
            if grad is None:
                continue
            if self.layout is not None or type(grad) is not torch.Tensor:
                if shards.layout_of(grad) != self.layout:
                    raise ArgumentError(
                        f"the gradient of parameter {self.labels[i]} is spread as {shards.layout_of(grad)}, the parameter as "
                        f"{self.layout}: redistribute it before the step"
                    )
                p, grad = shards.local(p), shards.local(grad)
            if p.dtype != dtype or p.device != device or p.shape != shape:
                raise ArgumentError(
                    f"parameter {self.labels[i]} is {p.dtype} {tuple(p.shape)} on {p.device} now, its state was made for "
                    f"{dtype} {tuple(shape)} on {device}: make a new optimizer and load this one's state_dict"
                )
            if grad.layout is not torch.strided or grad.dtype != dtype or grad.device != device:
                kind = grad.dtype if grad.layout is torch.strided else grad.layout
                raise ArgumentError(
                    f"the gradient of parameter {self.labels[i]} is {kind} on {grad.device}: expected dense {dtype} on "
                    f"{device}; for sparse gradients use torch.optim.SparseAdam"
                )
            if not (grad.is_contiguous() if contiguous else grad.stride() == strides):
                grad = torch.empty_strided(shape, strides, dtype=dtype, device=device).copy_(grad)
            active.append(i)
            grads.append(grad)
        self._find_moved()
        return np.array(active, np.int64), grads

    def _find_moved(self) -> None:
        addresses = np.array(self._addresses(), np.uint64)
        moved = np.nonzero(addresses != self.table["param"])[0]
        if not len(moved):
            return
        for i in moved.tolist():
            p = shards.local(self.params[i])
            if p.stride() != self._strides[i]:
                raise ArgumentError(
                    f"parameter {self.labels[i]} has the strides {p.stride()} now, its state was made for {self._strides[i]}: "
                    f"make a new optimizer and load this one's state_dict"
                )
        self.table["param"] = addresses
        if "moved" not in _said_moved:
            _said_moved.add("moved")
            logging.getLogger("sff_fast").info(
                "FusedAdamW: %d parameter(s) moved in memory since the last step, %s first: the step follows them",
                len(moved),
                self.labels[moved[0]],
            )

    def tasks(self, active: np.ndarray, grads: Sequence[torch.Tensor], grad_scale: float, decoupled: bool) -> np.ndarray:
        """The kernel table of this step; counts the step of every parameter in it."""
        steps = self.steps.numpy()
        steps[active] += 1
        table = self._with_gradients(active, grads)
        set_coefficients(table, steps[active].astype(np.float64), self.group, grad_scale, decoupled)
        return table

    def resident_tasks(self, active: np.ndarray, grads: Sequence[torch.Tensor], decoupled: bool) -> tuple[np.ndarray, np.ndarray]:
        """The kernel table of a step that the device counts, without coefficients, and the options that these come from."""
        options = np.zeros(len(active), OPTIONS_DTYPE)
        steps = self.steps.data_ptr() + self.steps.element_size() * active
        set_options(options, steps, self.group, decoupled)
        return self._with_gradients(active, grads), options

    def _with_gradients(self, active: np.ndarray, grads: Sequence[torch.Tensor]) -> np.ndarray:
        table = self.table.copy() if len(active) == len(self.table) else self.table[active]
        table["grad"] = [grad.data_ptr() for grad in grads]
        return table

    def run_reference(self, active: np.ndarray, grads: Sequence[torch.Tensor], table: np.ndarray) -> None:
        """The step in plain torch."""
        for i, grad, task in zip(active.tolist(), grads, table):
            reference.step(self._flat_view(i, self._stepped(i)), self._flat_view(i, grad), self._parts[i], task)

    def squares(self, i: int) -> float:
        """Sum of the squares of the gradient of parameter i, in float64; of this process's shard alone."""
        grad = shards.local(self.params[i].grad)
        if not (self.native and grad.dtype == self.dtype and is_dense(grad)):
            return reference.sum_of_squares(grad)
        table = self.table[i : i + 1].copy()
        table["grad"] = grad.data_ptr()
        return kernels.sum_of_squares(table, self.device)

    def _flat_view(self, i: int, x: torch.Tensor) -> torch.Tensor:
        return x.as_strided((self._elements[i],), (1,), x.storage_offset())


def make_buckets(
    group: dict[str, object],
    labels: Sequence[str],
    limit: int,
    kind: type[Bucket] = Bucket,
    move: Callable[[Sequence[torch.Tensor], Sequence[str]], None] | None = None,
) -> list[Bucket]:
    """Cut a group into buckets of consecutive parameters of one dtype, device and layout.

    Args:
        group: The parameter group.
        labels: A name for each parameter.
        limit: Bytes of parameters a bucket may hold; a larger parameter is a bucket alone.
        kind: Class of the buckets.
        move: May move the parameters of a bucket, given with their names, before it is made. Default None: they stay.

    Raises:
        ArgumentError: A parameter that the optimizer cannot run; nothing was moved then.
    """
    parts: list[list[int]] = []
    size = 0
    params = group["params"]
    for i, p in enumerate(params):
        check_parameter(labels[i], p, group)
        width = shards.local(p).numel() * p.element_size()
        first = params[parts[-1][0]] if parts else p
        alike = (first.dtype, first.device) == (p.dtype, p.device) and shards.layout_of(first) == shards.layout_of(p)
        if not parts or not alike or size + width > limit:
            parts.append([])
            size = 0
        parts[-1].append(i)
        size += width
    buckets = []
    for part in parts:
        chosen, names = [params[i] for i in part], [labels[i] for i in part]
        if move is not None:
            move(chosen, names)
        buckets.append(kind(group, chosen, names))
    return buckets
