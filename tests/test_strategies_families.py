"""The strategies that smoothing is compared with, on the tiny model of every family."""

from __future__ import annotations

import importlib.util
import math
import os

import numpy as np
import pytest
import torch
from family_cases import case_of, marked, require

import sff_fast
from sff_fast.data import ForecastData, Table
from sff_fast.training import STRATEGIES, evaluate, finetune

COMPARED = list(STRATEGIES)[list(STRATEGIES).index("noise") :]
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install 'sff_fast[lora]'"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One thread, and files that are not flushed to the disk: no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def few_windows(variant):
    """A dozen windows a part of two noisy waves, as the family wants them."""
    case, family = case_of(variant), require(variant)
    rows = 4 * (case.context + case.horizon)
    t, noise = np.arange(rows), 0.3 * np.random.default_rng(0).normal(size=(rows, 2))
    table = Table(np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + noise, ["a", "b"])
    independent = family.channel_independent
    return ForecastData(table, "0.4,0.3,0.3", case.context, case.horizon, stride=case.horizon, channel_independent=independent)


@pytest.mark.parametrize("strategy", [pytest.param(s, marks=[needs_peft] if s == "lora" else []) for s in COMPARED])
@pytest.mark.parametrize("variant", marked())
def test_a_strategy_tunes_the_tiny_model_and_saves_it_as_the_family_does(tmp_path, variant, strategy):
    data = few_windows(variant)
    adapter = sff_fast.tiny(variant)
    names = [name for name, _ in adapter.model.named_parameters()]
    before = [parameter.detach().clone() for parameter in adapter.model.parameters()]
    options = {"epochs": 1, "max_steps": 2, "batch_size": 4, "lr": 1e-3, "eval_batch_size": 16}
    result = finetune(adapter, data, strategy, out=tmp_path / "out", **options)
    assert [name for name, _ in adapter.model.named_parameters()] == names
    changed = [not torch.equal(*pair) for pair in zip(before, adapter.model.parameters(), strict=True)]
    assert any(changed)
    assert math.isfinite(result.test_mse)
    again = sff_fast.load(variant, tmp_path / "out" / "model")
    assert evaluate(again, data, "test", batch_size=16)["mse"] == pytest.approx(result.test_mse, rel=1e-6)
    assert all(torch.equal(*pair) for pair in zip(adapter.model.parameters(), again.model.parameters(), strict=True))
