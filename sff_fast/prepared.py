"""What one call of :func:`sff_fast.smooth_` finds out, for the next one on the same model.

Laying a plan over a model costs some ten microseconds a parameter, more than smoothing a small one. All of it but the seed is
a function of the plan, the arguments and what the parameters are (type, address, shape, strides, dtype, device); as long as
these are the same, names, factors and the kernel table are taken over, and only the seed is written into a copy of the table.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import nn

from sff_fast import table
from sff_fast.plan import InitPlan
from sff_fast.stream import rounding_key

Key = tuple[Hashable, ...]
_LAYOUT, _STATE = attrgetter("layout"), attrgetter("shape", "dtype", "device")


@dataclass(frozen=True)
class Prepared:
    """A call that was checked.

    Attributes:
        key: What it depends on besides the seed, from :func:`key_of`.
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
    """What a checked call depends on besides the seed; None where a later call has to look again.

    That is the case for a plan that is still to be found, and for parameters that are no plain dense :class:`nn.Parameter`.

    Args:
        parameters: All parameters of the model by the plan's names.
        plan: What the caller gave as the plan.
        arguments: The other arguments that names, factors and table depend on.
    """
    if not isinstance(plan, InitPlan):
        return None
    tensors = tuple(parameters.values())
    # Whole columns rather than a loop over parameters: this is most of what a second call costs.
    if {nn.Parameter, *map(type, tensors)} != {nn.Parameter} or {torch.strided, *map(_LAYOUT, tensors)} != {torch.strided}:
        return None
    state = (_STATE, torch.Tensor.data_ptr, torch.Tensor.stride, torch.Tensor.is_inference)
    columns = (tuple(map(column, tensors)) for column in state)
    return (id(plan), plan.hash, torch.is_inference_mode_enabled(), *arguments, tuple(parameters), *columns)


def recall(model: nn.Module, key: Key | None) -> Prepared | None:
    """The last call on this model, where it had the same key."""
    last = _LAST.get(model) if key is not None else None
    return last if last is not None and last.plan() is not None and last.key == key else None


def remember(model: nn.Module, prepared: Prepared) -> None:
    """Keep a call for the next one on this model, in place of the one before."""
    if prepared.key is not None and prepared.records is not None:
        _LAST[model] = prepared


def records_of(tasks: Sequence[table.BoxTask], packed: np.ndarray) -> np.ndarray | None:
    """A packed table that serves other seeds too; None where stored values depend on the seed."""
    return None if any(task.table is not None for task in tasks) else packed.view(table.TASK_DTYPE)
