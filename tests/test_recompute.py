"""Activation checkpointing in every family: the same gradients, fewer live bytes."""

from __future__ import annotations

import pytest
import torch
from family_cases import case_of, marked, require
from torch import nn

from sff_fast.data import Batch
from sff_fast.training.live import LiveBytes
from sff_fast.training.memory import _tensors_of
from sff_fast.training.recompute import can_recompute, recomputing, repeated_layers


@pytest.mark.parametrize("variant", marked())
def test_gradients_have_the_same_bits_and_the_model_is_left_as_it_was(variant: str) -> None:
    case = case_of(variant)
    adapter = require(variant).tiny()
    values = torch.randn(2, case.context + case.horizon, 1, generator=torch.Generator().manual_seed(0))
    batch = Batch(values[:, : case.context], values[:, case.context :], torch.arange(2))
    assert can_recompute(adapter)
    attributes = [set(vars(module)) for module in adapter.model.modules()]
    results, after_forward = [], []
    for enabled in (False, True):
        adapter.model.train()
        adapter.model.zero_grad()
        torch.manual_seed(1)
        with recomputing(adapter, enabled), LiveBytes(_tensors_of(adapter.model)) as live:
            loss = adapter.loss(batch)
            after_forward.append(live.live)
            loss.backward()
        results.append([loss.detach(), *(p.grad for p in adapter.model.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert after_forward[1] < after_forward[0]
    assert [
        set(vars(module)) - {"gradient_checkpointing", "_gradient_checkpointing_func"} for module in adapter.model.modules()
    ] == [names - {"gradient_checkpointing", "_gradient_checkpointing_func"} for names in attributes]


def test_only_outermost_stacks_of_equal_modules_with_parameters_are_repeated_layers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(2))
    model.single = nn.ModuleList([nn.Linear(2, 2)])
    model.mixed = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])
    model.empty = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    assert repeated_layers(model) == list(model.layers)
