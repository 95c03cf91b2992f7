"""What the ranks of test_distributed.py run: jobs of the fine-tuning loop, by their settings."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_fakes import CONTEXT, HORIZON, FakeAdapter, make_data

import sff_fast
from sff_fast import distributed
from sff_fast.adapters import Adapter


class Stack(nn.Module):
    """A list of blocks, as FSDP2 shards them; odd sizes, no dropout: its masks would depend on the number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(CONTEXT, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(7, HORIZON)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x.transpose(1, 2)))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return (self.head(hidden) * self.scale[0]).transpose(1, 2)


class StackAdapter(FakeAdapter):
    """The family of the little stack."""

    variant = "stack"

    @classmethod
    def tiny(cls, seed: int = 0) -> StackAdapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(Stack().eval(), origin=lambda: cls.tiny(seed))

    def build(self) -> Stack:
        return Stack()

    def config(self) -> dict[str, Any]:
        return {"family": "stack"}


class SpareAdapter(StackAdapter):
    """The stack with a parameter that its loss does not use, as the heads of other tasks are."""

    @classmethod
    def tiny(cls, seed: int = 0) -> SpareAdapter:
        adapter = super().tiny(seed)
        adapter.model.spare = nn.Linear(2, 2)
        return adapter

    def build(self) -> Stack:
        model = Stack()
        model.spare = nn.Linear(2, 2)
        return model


# Weight decay beside the gradient: Adam alone would not notice gradients of a wrong size.
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 13,
    "seed": 3,
    "eval_batch_size": 5,
    "schedule": "cosine",
    "weight_decay": 0.1,
}


ADAPTERS = {"stack": StackAdapter, "spare": SpareAdapter, "net": FakeAdapter}


def job(adapter: Adapter, strategy: str = "sff", stop_at: tuple[int, int, int] | None = None, **settings: Any) -> dict[str, Any]:
    """Run a job and tell what it gave, with the weights that the model ends with.

    Args:
        adapter: The model.
        strategy: How it is tuned.
        stop_at: A rank, the number of its losses after which it gets a signal, and which.
        **settings: More for ``finetune``.
    """
    losses: list[int] = []

    def on_loss(batch: Any) -> None:
        losses.append(1)
        if stop_at is not None and (int(os.environ["RANK"]), len(losses)) == tuple(stop_at[:2]):
            os.kill(os.getpid(), stop_at[2])

    adapter.on_loss = on_loss
    result = sff_fast.finetune(adapter, make_data(), strategy, device="cpu", **{**SETTINGS, **settings})
    weights = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().double().flatten().tolist()
        for name, p in adapter.model.named_parameters()
    }
    return {"run": result.to_json(), "history": result.history, "zero_shot": result.zero_shot, "weights": weights}


def serve(rank: int, size: int, port: int, folder: str, jobs: dict[str, dict[str, Any]]) -> None:
    """Run jobs one after the other in a group of their own, and write what they gave to ``LABEL-RANK.json``."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        for label, settings in jobs.items():
            try:
                answer = job(ADAPTERS[settings.pop("adapter", "stack")].tiny(), **settings)
            except SystemExit as stopped:
                answer = {"stopped": stopped.code}
            except Exception:  # whatever went wrong is the answer
                answer = {"error": traceback.format_exc()}
            (Path(folder) / f"{label}-{rank}.json").write_text(json.dumps(answer))
            if "error" in answer:
                return
    finally:
        distributed.leave()
