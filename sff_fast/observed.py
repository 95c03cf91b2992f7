"""Whether a model's parameters are what they were, asked by the native module.

It walks the modules as :func:`sff_fast.names.named_parameters` does and reads every tensor by the C functions of DLPack that
newer versions of torch offer (``torch.Tensor.__dlpack_c_exchange_api__``): about 0.3 microseconds a parameter whose objects have
left the caches, where columns of Python take 1.8. It needs no header of torch, so that one module serves every version.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import TYPE_CHECKING

import torch
from torch import nn

from sff_fast.backends import cpu
from sff_fast.names import FLAT_ATTRIBUTES, is_wrapper

if TYPE_CHECKING:
    from sff_fast import _cpu


def observe(model: nn.Module, parameters: Iterable[nn.Parameter]) -> _cpu.Observed | None:
    """A model as it is now, for the native module.

    Args:
        model: The model.
        parameters: Its parameters as :func:`sff_fast.names.named_parameters` has them: plain ones, on any device.

    Returns:
        What says of the model whether names, order, identity, type, address, shape, strides, dtype and device of its parameters
        are still the same, with the parameters if so. None where it could not: the torch in use has no C functions of DLPack,
        a module is a wrapper or keeps its parameters in a way of its own, or a parameter is an inference tensor, one that
        DLPack does not describe, or flat. Nothing is lost then but time: :mod:`sff_fast.prepared` asks without it.
    """
    if cpu.why_absent() or not all(map(_is_walked, {type(module): module for module in model.modules()}.values())):
        return None
    try:
        observed = cpu._cpu.Observed(nn.Parameter, torch.Tensor.is_inference, FLAT_ATTRIBUTES, model)
    except ValueError:
        return None
    found, expected = observed.parameters(model), list(parameters)
    return observed if found is not None and len(found) == len(expected) and all(map(is_, found, expected)) else None


def _is_walked(module: nn.Module) -> bool:
    """Whether the dicts of a module are all there is to say of its parameters, their names and its children."""
    cls = type(module)
    usual = cls.__getattribute__ is object.__getattribute__ and not hasattr(cls, "_parameters") and not hasattr(cls, "_modules")
    return usual and not is_wrapper(module)
