"""Why a training loss is not finite: which parameter, which window, which layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ..data import ForecastData
from ..distributed.group import Group
from ..shards import local
from .runtime import seeded

_SHOWN = 3


def batch_text(indices: torch.Tensor) -> str:
    """The windows of a batch by their numbers, such as ``windows 7, 2, 40, … (32 in the batch)``."""
    shown = ", ".join(str(int(index)) for index in indices[:_SHOWN])
    return f"windows {shown}{', …' if len(indices) > _SHOWN else ''} ({len(indices)} in the batch)"


def parameter_text(model: torch.nn.Module, group: Group) -> str | None:
    """The first parameter with values that are not finite, and how many there are; None where all are finite."""
    own = []
    for name, parameter in model.named_parameters():
        values = local(parameter.detach())
        if bad := values.numel() - int(values.isfinite().sum()):
            own.append((name, bad, values.numel()))
    found: dict[str, list[int]] = {}
    for name, bad, elements in (one for some in group.gather(own) for one in some):
        counts = found.setdefault(name, [0, 0])
        counts[0] += bad
        counts[1] += elements
    if not found:
        return None
    name, (bad, elements) = next(iter(found.items()))
    more = f", and so are values of {len(found) - 1} more" if len(found) > 1 else ""
    return f"{bad} of {elements} values of the parameter {name!r} are not finite{more}"


def explain(
    adapter: Any,
    data: ForecastData,
    indices: torch.Tensor,
    before: torch.Tensor | None,
    step: int,
    seed: int,
    device: str,
    group: Group,
) -> str:
    """What made the loss of a batch NaN or infinite, as far as the model tells.

    Args:
        adapter: The model, with the weights that the loss was computed with; it is left as it is.
        data: The windows.
        indices: The windows of the batch.
        before: Those of the step before; None where there was none in this epoch.
        step: Number of the step before, from 1; 0 where there was none.
        seed: Seeds the random generators while the model is asked again; they are as before afterwards.
        device: The run's device.
        group: The processes that train together; all must call.
    """
    if (parameter := parameter_text(adapter.model, group)) is not None:
        if step == 0:
            return f"{parameter} from the beginning"
        return f"{parameter} since step {step}" + (f", of {batch_text(before)}" if before is not None else "")
    if group.size > 1:
        return "every parameter is finite"
    buffers = [(buffer, buffer.detach().clone()) for buffer in adapter.model.buffers()]
    try:
        with torch.no_grad(), seeded(seed, device):
            window = _window(adapter, data, indices, device)
            if window is None:
                return "every parameter is finite, and so is the loss of its parts when it is computed again"
            where = _place(data, window)
            layer = _layer(adapter, data, window, device)
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
    return f"every parameter is finite, the loss of {where} is not; {layer}"


def _loss(adapter: Any, data: ForecastData, indices: torch.Tensor, device: str) -> float:
    return adapter.loss(data.train.batch(indices).to(device)).item()


def _window(adapter: Any, data: ForecastData, indices: torch.Tensor, device: str) -> torch.Tensor | None:
    """One window whose own loss is not finite, found by halving; None where neither half of a batch shows it."""
    if math.isfinite(_loss(adapter, data, indices, device)):
        return None
    while len(indices) > 1:
        halves = indices.tensor_split(2)
        bad = [half for half in halves if not math.isfinite(_loss(adapter, data, half, device))]
        if not bad:
            return None
        indices = bad[0]
    return indices


def _place(data: ForecastData, window: torch.Tensor) -> str:
    rows, channel = data.train.positions(window)
    column = "" if channel is None else f", column {data.columns[int(channel[0])]!r}"
    return f"window {int(window[0])} (from row {int(rows[0])}{column})"


def _layer(adapter: Any, data: ForecastData, window: torch.Tensor, device: str) -> str:
    """The first module whose output is not finite, with its parameter of the greatest size."""
    found: list[str] = []
    names = {module: name for name, module in adapter.model.named_modules()}

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not found and not all(bool(tensor.isfinite().all()) for tensor in _floats(output)):
            found.append(names[module])

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        _loss(adapter, data, window, device)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return "the output of every layer is finite, and the loss made of it is not"
    own = list(adapter.model.get_submodule(found[0]).named_parameters(recurse=False))
    text = f"the first layer whose output is not finite is {found[0] or 'the model itself'!r}"
    if own:
        name, greatest = max(((name, p.abs().max().item()) for name, p in own if p.numel()), key=lambda pair: pair[1])
        text += f", whose parameter {'.'.join(filter(None, (found[0], name)))!r} goes up to {greatest:.3g}"
    return text


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floats(item)
