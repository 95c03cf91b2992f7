"""The CPU in a GPU's place: tensors on the CPU, one stream, memory that is pinned by itself, and graphs of launches."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from cuda_shim.module import load
from sff_fast.backends import cuda
from sff_fast.optim import cuda as optim_cuda
from sff_fast.optim import kernels


class Graph:
    """The optimizer's launches in order, put down while it is entered and not run; a replay runs them."""

    current: Graph | None = None

    def __init__(self) -> None:
        self._launches: list[tuple[object, tuple[object, ...]]] = []

    def __enter__(self) -> Graph:
        Graph.current = self
        return self

    def __exit__(self, *error: object) -> None:
        Graph.current = None

    @staticmethod
    def launch(plan: optim_cuda.Plan, function, *arguments: object) -> None:
        """What takes the place of ``Plan._call``."""
        if Graph.current is None:
            function(*arguments)
        else:
            kept = tuple(x.copy() if isinstance(x, np.ndarray) else x for x in arguments)
            Graph.current._launches.append((function, kept))

    def replay(self) -> None:
        """Run the launches."""
        for function, arguments in self._launches:
            function(*arguments)

    def names(self) -> list[str]:
        """What the launches do."""
        return [function.__name__ for function, _ in self._launches]


def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the optimizer take the CPU for a GPU on which steps may be captured in a :class:`Graph`."""
    monkeypatch.setattr(cuda, "_cuda", load())
    monkeypatch.setattr(cuda, "index", lambda device: 0)
    monkeypatch.setattr(optim_cuda, "_plans", type(optim_cuda._plans)())
    monkeypatch.setattr(optim_cuda.Plan, "_call", Graph.launch)
    monkeypatch.setattr(kernels, "captures", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    for name, value in {
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: Graph.current is not None,
        "current_stream": lambda device: types.SimpleNamespace(cuda_stream=0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
