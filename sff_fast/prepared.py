"""What one call of :func:`sff_fast.smooth_` finds out, for the next one on the same model.

Laying a plan over a model costs some ten microseconds a parameter, more than smoothing a small one. All of it but the seed is
a function of the plan, the arguments and what the parameters are (type, address, shape, strides, dtype, device); as long as
these are the same, names, factors and the kernel table are taken over, and only the seed is written into a copy of the table.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, eq

import numpy as np
import torch
from torch import nn

from sff_fast import table
from sff_fast.plan import InitPlan
from sff_fast.stream import rounding_key

Key = tuple[Hashable, ...]
_LAYOUT = attrgetter("layout")
_STATE = (
    *map(attrgetter, ("shape", "dtype", "device")),
    torch.Tensor.data_ptr,
    torch.Tensor.stride,
    torch.Tensor.is_inference,
)


@dataclass(frozen=True)
class Prepared:
    """A call that was checked.

    Attributes:
        key: What it depends on besides the seed and the parameters, from :func:`key_of`.
        names: Names of all parameters of the model.
        state: What the parameters were, a column of :data:`_STATE` each.
        plan_hash: Content hash of the plan.
        plan: The plan itself, which must still be the one of that identity. A weak reference: a plan knows its factory, which
            may know the model, and what is kept here must not keep the model alive.
        shrink: Name to the factor of the weights, for every parameter that is changed.
        perturb: Name to the factor of the draw.
        untouched: Names of the others.
        versioned: Names of the changed ones that have a version counter: all but inference tensors.
        dtypes: Parameters whose dtype differs from the plan's, as :class:`sff_fast.SmoothReport` has them.
        elements: Elements that are changed.
        records: The kernel table of the CPU, for any seed; None where it cannot be taken over.
    """

    key: Key | None
    names: tuple[str, ...]
    state: tuple[tuple, ...]
    plan_hash: str
    plan: weakref.ref[InitPlan]
    shrink: Mapping[str, float]
    perturb: Mapping[str, float]
    untouched: tuple[str, ...]
    versioned: tuple[str, ...]
    dtypes: tuple[str, ...]
    elements: int
    records: np.ndarray | None = None

    def packed(self, seed: int) -> np.ndarray:
        """The kernel table for a seed, as bytes."""
        records = self.records.copy()
        records["seed"], records["round_seed"] = seed, rounding_key(seed, 0)
        return records.view(np.uint8)


_LAST: weakref.WeakKeyDictionary[nn.Module, Prepared] = weakref.WeakKeyDictionary()


def key_of(parameters: Mapping[str, torch.Tensor], plan: object, *arguments: Hashable) -> Key | None:
    """What a checked call depends on besides the seed and the parameters; None where a later call has to look again.

    That is the case for a plan that is still to be found, and for parameters that are no plain dense :class:`nn.Parameter`.

    Args:
        parameters: All parameters of the model by the plan's names.
        plan: What the caller gave as the plan.
        arguments: The other arguments that names, factors and table depend on.
    """
    if not isinstance(plan, InitPlan):
        return None
    tensors = parameters.values()
    # Here and below whole columns rather than a loop over parameters: this is most of what a second call costs.
    if {nn.Parameter, *map(type, tensors)} != {nn.Parameter} or {torch.strided, *map(_LAYOUT, tensors)} != {torch.strided}:
        return None
    return (id(plan), plan.hash, torch.is_inference_mode_enabled(), *arguments)


def state_of(parameters: Mapping[str, torch.Tensor]) -> tuple[tuple, ...]:
    """What plain dense parameters are, a column of :data:`_STATE` each."""
    return tuple(tuple(map(column, parameters.values())) for column in _STATE)


def recall(model: nn.Module, key: Key | None, parameters: Mapping[str, torch.Tensor]) -> Prepared | None:
    """The last call on this model, where it had the same key and the parameters are what they were."""
    last = _LAST.get(model) if key is not None else None
    if last is None or last.plan() is None or last.key != key or len(last.names) != len(parameters):
        return None
    tensors = parameters.values()
    # Compared as they come: columns that are built first cost a second pass, and the garbage collector looks through them.
    same = all(map(eq, last.names, parameters)) and all(
        all(map(eq, before, map(column, tensors))) for column, before in zip(_STATE, last.state)
    )
    return last if same else None


def remember(model: nn.Module, prepared: Prepared) -> None:
    """Keep a call for the next one on this model, in place of the one before."""
    if prepared.key is not None and prepared.records is not None:
        _LAST[model] = prepared


def records_of(tasks: Sequence[table.BoxTask], packed: np.ndarray) -> np.ndarray | None:
    """A packed table that serves other seeds too; None where stored values depend on the seed."""
    return None if any(task.table is not None for task in tasks) else packed.view(table.TASK_DTYPE)
