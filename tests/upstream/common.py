"""What the scripts beside this one share. Each opens checkpoints with one family's own package, and never with sff_fast.

A script ``tests/upstream/<variant with _>.py`` defines

* ``load(path) -> model``: a folder in the published layout, loaded the package's way, in eval mode;
* ``loss(model, context, target) -> Tensor``: the package's own training loss of [B, L, C] and [B, H, C], a scalar;
* ``forecast(model, context, prediction_length, seed, num_samples) -> dict``: ``mean`` [B, H, C] and, where the package has
  them, ``quantiles`` {level: [B, H, C]} and ``samples`` [B, S, H, C], computed by the package's pipeline;

and ends in ``if __name__ == "__main__": main(load, loss, forecast)``, so that it is a program too:

    python tests/upstream/ttm.py CHECKPOINT INPUT.safetensors OUTPUT.safetensors

It imports this module as ``common``; a test gets the script's module from ``family_cases.upstream(variant)``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Result = dict[str, Any]


def to_series(values: Tensor) -> Tensor:
    """[B, L, C] -> [B * C, L]: every channel a series of its own."""
    return values.transpose(1, 2).reshape(-1, values.shape[1])


def from_series(values: Tensor, channels: int) -> Tensor:
    """[B * C, ..., H] -> [B, ..., H, C]."""
    return values.unflatten(0, (-1, channels)).movedim(1, -1)


def write_request(path: Path, context: Tensor, target: Tensor, **request: Any) -> None:
    """The input of a program.

    Args:
        path: The file to make.
        context: [B, L, C].
        target: [B, H, C].
        **request: ``prediction_length``, ``seed`` and ``num_samples`` (an int or None).
    """
    tensors = {"context": context.contiguous(), "target": target.contiguous()}
    save_file(tensors, path, {"request": json.dumps(request)})


def read_result(path: Path) -> tuple[dict[str, Tensor], Tensor, Result]:
    """The output of a program: the model's tensors, the loss in eval mode, and the forecast."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        levels = json.loads(file.metadata()["levels"])
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    forecast = {name: tensors[name] for name in ("mean", "samples") if name in tensors}
    if "quantiles" in tensors:
        forecast["quantiles"] = dict(zip(levels, tensors["quantiles"], strict=True))
    return state, tensors["loss"], forecast


def main(
    load: Callable[[str], torch.nn.Module],
    loss: Callable[[torch.nn.Module, Tensor, Tensor], Tensor],
    forecast: Callable[..., Result],
    alone: bool = True,
) -> None:
    """Load the checkpoint, compute the loss and the forecast that the input asks for, and write all of it.

    Args:
        load: As the script defines it.
        loss: As the script defines it.
        forecast: As the script defines it.
        alone: Whether sff_fast must not have been imported.
    """
    checkpoint, source, target = sys.argv[1:]
    torch.set_num_threads(1)
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        request = json.loads(file.metadata()["request"])
    model = load(checkpoint)
    with torch.no_grad():
        torch.manual_seed(request["seed"])
        value = loss(model, tensors["context"], tensors["target"])
        found = forecast(
            model, tensors["context"], request["prediction_length"], seed=request["seed"], num_samples=request["num_samples"]
        )
    assert not (alone and "sff_fast" in sys.modules), "a script of tests/upstream uses the family's package alone"
    # Cloned: safetensors takes no two names for one memory, which tied weights are.
    result = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    result["loss"] = value.detach().clone()
    result.update({name: found[name].detach().clone() for name in ("mean", "samples") if name in found})
    levels = found.get("quantiles", {})
    if levels:
        result["quantiles"] = torch.stack(list(levels.values()))
    contiguous = {name: tensor.contiguous() for name, tensor in result.items()}
    save_file(contiguous, target, {"levels": json.dumps(list(levels))})
