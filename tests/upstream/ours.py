"""The families that publish no package, by sff_fast in a process of its own; their files must be plain tensors.

The folder's name is the variant's: ``.../timer/``. What the numbers must be is checked against golden files elsewhere.
"""

from __future__ import annotations

import types
from pathlib import Path

import torch
from common import Result, main
from safetensors.torch import load_file
from torch import Tensor

import sff_fast
from sff_fast.adapters import Adapter

_ADAPTERS: dict[torch.nn.Module, Adapter] = {}


def load(path: str) -> torch.nn.Module:
    for file in Path(path).iterdir():
        if file.suffix in (".ckpt", ".pth"):
            assert all(isinstance(tensor, Tensor) for tensor in _leaves(torch.load(file, weights_only=True)))
        elif file.suffix == ".safetensors":
            assert load_file(file)
    adapter = sff_fast.load(Path(path).name, path)
    _ADAPTERS[adapter.model] = adapter
    return adapter.model


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    return _ADAPTERS[model].loss(types.SimpleNamespace(context=context, target=target))


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    return {"mean": _ADAPTERS[model].forecast(context, prediction_length).mean}


def _leaves(content: object) -> list[object]:
    return [leaf for value in content.values() for leaf in _leaves(value)] if isinstance(content, dict) else [content]


if __name__ == "__main__":
    main(load, loss, forecast, alone=False)
