"""What one call of :func:`sff_fast.smooth_` finds out, for the next one on the same model.

Laying a plan over a model costs some ten microseconds a parameter, more than smoothing a small one. All of it but the seed is
a function of the plan, the arguments and what the parameters are (name, type, address, shape, strides, dtype, device); as long
as these are the same, names, factors and the kernel table are taken over, and only the seed is another one.

Whether they are the same is asked of every parameter, every time: most of what a second call costs besides the kernels. The
native module asks where it can, see :mod:`sff_fast.observed`; elsewhere it is done here, a column of all parameters at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter, eq
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from sff_fast.names import named_parameters, unwrap
from sff_fast.observed import observe
from sff_fast.plan import InitPlan

if TYPE_CHECKING:
    from sff_fast import _cpu

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
    """What a call found out, as :class:`sff_fast.SmoothReport` has it.

    Attributes:
        plan_hash: Content hash of the plan.
        shrink: Name to the factor of the weights, for every parameter that is changed.
        perturb: Name to the factor of the draw.
        untouched: Names of the others.
        dtypes: Parameters whose dtype differs from the plan's.
        elements: Elements that are changed.
    """

    plan_hash: str
    shrink: Mapping[str, float]
    perturb: Mapping[str, float]
    untouched: tuple[str, ...]
    dtypes: tuple[str, ...]
    elements: int


@dataclass(frozen=True)
class _Last:
    """A call, and what it depends on.

    Attributes:
        call: What it found out.
        key: What it depends on besides the seed and the parameters, from :func:`key_of`.
        plan: The plan itself, which must still be the one of that identity. A weak reference: a plan knows its factory, which
            may know the model, and what is kept here must not keep the model alive.
        names: Names of all parameters of the model.
        state: What the parameters were, a column of :data:`_STATE` each.
        observed: The same for the native module, or None where it cannot say whether they still are; see :func:`observe`.
        versioned: For every name whether the parameter is changed and has a version counter, which inference tensors lack;
            None for all of them.
        table: The kernel table of the CPU, for any seed.
    """

    call: Prepared
    key: Key
    plan: weakref.ref[InitPlan]
    names: tuple[str, ...]
    state: tuple[tuple, ...]
    observed: _cpu.Observed | None
    versioned: tuple[bool, ...] | None
    table: _cpu.Table


_LAST: weakref.WeakKeyDictionary[nn.Module, _Last] = weakref.WeakKeyDictionary()


class Recalled(NamedTuple):
    """A call that holds again: what it found out, its table, and the parameters whose version counters are to rise."""

    call: Prepared
    table: _cpu.Table
    versioned: list[nn.Parameter]


def key_of(plan: object, *arguments: Hashable) -> Key | None:
    """What a checked call depends on besides the seed and the parameters; None for a plan that is still to be found.

    Args:
        plan: What the caller gave as the plan.
        arguments: The other arguments that names, factors and table depend on.
    """
    if not isinstance(plan, InitPlan):
        return None
    return (id(plan), plan.hash, torch.is_inference_mode_enabled(), *arguments)


def recall(model: nn.Module, key: Key | None, prefix: str) -> Recalled | None:
    """The last call on this model, where it had the same key and the parameters are what they were.

    Args:
        model: The model, wrapped or not.
        key: From :func:`key_of`.
        prefix: As for :func:`sff_fast.names.named_parameters`.
    """
    last = _LAST.get(unwrap(model)) if key is not None else None
    if last is None or last.plan() is None or last.key != key:
        return None
    parameters = last.observed.parameters(model) if last.observed is not None else None
    if parameters is None:
        named = named_parameters(model, prefix)
        if not _is_same(last, named):
            return None
        parameters = list(named.values())
    versioned = parameters if last.versioned is None else list(compress(parameters, last.versioned))
    return Recalled(last.call, last.table, versioned)


def remember(
    model: nn.Module,
    key: Key | None,
    plan: InitPlan,
    call: Prepared,
    parameters: Mapping[str, nn.Parameter],
    table: _cpu.Table | None,
) -> None:
    """Keep a call for the next one on this model, in place of the one before.

    Parameters that are no plain dense :class:`nn.Parameter` are looked at again by every call: nothing is kept.

    Args:
        model: The model, wrapped or not.
        key: From :func:`key_of`.
        plan: The plan that was given.
        call: What the call found out.
        parameters: All parameters of the model by the plan's names.
        table: The kernel table of the CPU; None where it does not serve another seed.
    """
    if key is None or table is None or not _is_plain(parameters):
        return
    versioned = tuple(name in call.shrink and not p.is_inference() for name, p in parameters.items())
    _LAST[unwrap(model)] = _Last(
        call=call,
        key=key,
        plan=weakref.ref(plan),
        names=tuple(parameters),
        state=tuple(tuple(map(column, parameters.values())) for column in _STATE),
        observed=observe(model, parameters.values()),
        versioned=None if all(versioned) else versioned,
        table=table,
    )


def _is_plain(parameters: Mapping[str, torch.Tensor]) -> bool:
    tensors = parameters.values()
    # Here and below whole columns rather than a loop over parameters, which takes several times as long.
    return {nn.Parameter, *map(type, tensors)} == {nn.Parameter} and {torch.strided, *map(_LAYOUT, tensors)} == {torch.strided}


def _is_same(last: _Last, parameters: Mapping[str, torch.Tensor]) -> bool:
    if len(last.names) != len(parameters) or not _is_plain(parameters) or not all(map(eq, last.names, parameters)):
        return False
    tensors = parameters.values()
    # Compared as they come: columns that are built first cost a second pass, and the garbage collector looks through them.
    return all(all(map(eq, before, map(column, tensors))) for column, before in zip(_STATE, last.state))
