"""What the ranks of test_distributed_families.py run: a few steps of every family's tiny model."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import numpy as np
import torch
from family_cases import case_of, variants

import sff_fast
from sff_fast import distributed
from sff_fast.adapters import Adapter
from sff_fast.data import ForecastData, Table


def imputation_data() -> Any:
    """Windows with hidden points."""
    from test_tasks_imputation import loop_data

    return loop_data()


def anomaly_data() -> Any:
    """Windows of a series with a fault."""
    from test_tasks_anomaly import make_data

    return make_data()


TASKS = {"imputation": imputation_data, "anomaly": anomaly_data}


def data_of(adapter: Adapter, variant: str) -> ForecastData:
    """Some windows of two noisy waves; a batch of five does not divide among two ranks."""
    case = case_of(variant)
    rows = 5 * (case.context + case.horizon)
    t = np.arange(rows)
    values = np.stack([np.sin(t / 3), np.cos(t / 5)], axis=1) + 0.1 * np.random.default_rng(0).normal(size=(rows, 2))
    independent = adapter.channel_independent
    return ForecastData(
        Table(values, ["a", "b"]), "0.6,0.2,0.2", case.context, case.horizon, stride=17, channel_independent=independent
    )


def without_dropout(adapter: Adapter) -> Adapter:
    """The adapter, its model without masks: they depend on the number of ranks."""
    for module in adapter.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return adapter


def tune(name: str, parallel: str | None) -> dict[str, Any]:
    """Errors and losses of a short run, of a variant, or of a variant and a task other than forecasting."""
    variant, _, task = name.partition(" ")
    adapter = without_dropout(variants()[variant].tiny())
    data = TASKS[task]() if task else data_of(adapter, variant)
    options = {"epochs": 1, "max_steps": 2, "batch_size": 5, "eval_batch_size": 8, "lr": 1e-3, "device": "cpu"}
    result = sff_fast.finetune(adapter, data, "sff", parallel=parallel, **options)
    first, last = result.history
    return {"before": first["val_mse"], "loss": last["train_loss"], "val": last["val_mse"], "test": result.test_mse}


def main() -> None:
    """Run the variants given under DDP and FSDP2, and write what they gave."""
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    answers: dict[str, dict[str, Any]] = {}
    try:
        for name in names:
            for parallel in ("ddp", "fsdp"):
                try:
                    answers[f"{name} {parallel}"] = tune(name, parallel)
                except Exception:  # whatever went wrong is the answer
                    answers[f"{name} {parallel}"] = {"error": traceback.format_exc()}
    finally:
        with open(f"{folder}/rank-{os.environ['RANK']}.json", "w") as file:
            json.dump(answers, file)
        distributed.leave()


if __name__ == "__main__":
    main()
