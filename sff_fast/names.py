"""The plan's names of a model's parameters, whatever wraps the model.

Wrappers are recognised by the type of the module and taken out of the name at any depth; what cannot be addressed element
by element (DeepSpeed ZeRO-3, FSDP1 with flat parameters) is refused by name.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import nn

from sff_fast.errors import PlanError

_ATTRIBUTES = attrgetter("__dict__")
_PARTITIONED, _UNSHARDED_SIZE = FLAT_ATTRIBUTES = ("ds_id", "_unpadded_unsharded_size")
"""What DeepSpeed ZeRO-3 and FSDP1 mark parameters with that have no addressable elements."""

# Qualified name of the wrapper's class -> the attribute that holds the wrapped module. Looked up by name along the class
# hierarchy, so that none of these modules has to be imported.
_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": ("module",),
    "torch.nn.parallel.data_parallel.DataParallel": ("module",),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": ("_fsdp_wrapped_module",),
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod",),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": ("_checkpoint_wrapped_module",),
    "torch.optim.swa_utils.AveragedModel": ("module",),
    "peft.peft_model.PeftModel": ("base_model", "model"),
    "peft.tuners.tuners_utils.BaseTunerLayer": ("base_layer",),
}


def _wrapped_path(module: nn.Module) -> tuple[str, ...]:
    for cls in type(module).__mro__:
        path = _WRAPPERS.get(f"{cls.__module__}.{cls.__qualname__}")
        if path is not None:
            return path
    return ()


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module stands for another one, whose name it has taken or hidden."""
    return bool(_wrapped_path(module))


def _follow(module: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """The module at the end of the path; peft calls the model itself ``base_model.model`` in most tuners only."""
    for part in path:
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            return None
    return module


def unwrap(model: nn.Module) -> nn.Module:
    """The innermost module behind wrappers at the root of a model."""
    while (inner := _follow(model, path) if (path := _wrapped_path(model)) else None) is not None:
        model = inner
    return model


def _walk(module: nn.Module, prefix: str, visited: set[int], names: list[str], found: list[nn.Parameter]) -> None:
    """Append every name and its parameter; a parameter of several names appears under each."""
    if id(module) in visited:
        return
    visited.add(id(module))
    names += [prefix + name for name, parameter in module._parameters.items() if parameter is not None]
    found += [parameter for parameter in module._parameters.values() if parameter is not None]
    if not module._modules:
        return
    path = _wrapped_path(module)
    inner = _follow(module, path) if path else None
    for name, child in module._modules.items():
        if child is None:
            continue
        # a wrapper's own attributes are no part of the name: the wrapped module takes the wrapper's place
        if inner is not None and name == path[0]:
            _walk(inner, prefix, visited, names, found)
        else:
            _walk(child, f"{prefix}{name}.", visited, names, found)


def named_parameters(model: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    """The model's parameters under the plan's names, tied ones once, in order.

    Args:
        model: Any module, wrapped or not.
        prefix: What the names in the plan begin with before the names in ``model``; a prefix that starts with ``-`` is
            taken off the model's names instead. Default empty.

    Returns:
        Name to parameter. Of several names of one parameter the first counts.

    Raises:
        PlanError: Two different parameters map to one name, a prefix does not fit, or the parameters cannot be addressed
            element by element (DeepSpeed ZeRO-3, FSDP1 flat parameters).
    """
    names: list[str] = []
    parameters: list[nn.Parameter] = []
    _walk(model, "", set(), names, parameters)
    # Mostly all are plain, and none has two names: seen by whole columns, in a third of the time that a loop takes.
    plain = {nn.Parameter, *map(type, parameters)} == {nn.Parameter} and not any(map(_ATTRIBUTES, parameters))
    if plain and not prefix and len(set(names)) == len(names) == len(set(map(id, parameters))):
        return dict(zip(names, parameters))
    found: dict[str, nn.Parameter] = {}
    first: dict[int, str] = {}
    taken = prefix[1:] if prefix.startswith("-") else None
    for name, parameter in zip(names, parameters):
        if type(parameter) is not nn.Parameter or parameter.__dict__:  # a plain one has no attribute that would say so
            _refuse_flat(name, parameter)
        if taken is None:
            name = prefix + name
        elif name.startswith(taken):
            name = name[len(taken) :]
        else:
            raise PlanError(f"prefix={prefix!r} takes {taken!r} off every name, but there is {name!r}")
        if id(parameter) in first:
            continue
        if name in found:
            raise PlanError(
                f"two different parameters of the model map to the name {name!r}: pass the module itself, or a prefix="
            )
        first[id(parameter)] = name
        found[name] = parameter
    return found


def _refuse_flat(name: str, parameter: torch.Tensor) -> None:
    if hasattr(parameter, _PARTITIONED):
        raise PlanError(
            f"{name!r} is partitioned by DeepSpeed ZeRO-3, which has no addressable elements: smooth before deepspeed.initialize"
        )
    if type(parameter).__name__ == "FlatParameter" or hasattr(parameter, _UNSHARDED_SIZE):
        raise PlanError(f"{name!r} is a flat parameter of FSDP1: wrap with use_orig_params=True, or smooth before wrapping")
