"""A fresh process that predicts the memory of a run, then makes the run: ``memory_run.py SIZE OPTIONS-AS-JSON``.

SIZE is a variant's name, for its tiny model, or ``medium``; of the options ``epochs`` is this file's own.

Prints one line of JSON: the predicted and the measured peak.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings

import numpy as np
import torch
from family_cases import case_of

from sff_fast.adapters import Adapter, tiny
from sff_fast.data import ForecastData, Table
from sff_fast.training import finetune
from sff_fast.training.config import resolve_settings
from sff_fast.training.memory import MemoryModel


def model(size: str) -> Adapter:
    """The tiny model of a variant, or a Timer of 19 million parameters."""
    if size != "medium":
        return tiny(size)
    from sff_fast.adapters.timer import TimerAdapter
    from sff_fast.models import Timer, TimerConfig

    return TimerAdapter(Timer(TimerConfig(d_model=512, d_ff=2048, e_layers=6)).eval())


def main(size: str, options: dict[str, object]) -> dict[str, int]:
    """Predict, then run three steps, or several epochs of two steps each."""
    epochs = options.pop("epochs", 1)
    torch.set_num_threads(1)
    adapter = model(size)
    case = case_of(size)
    context, horizon = (960, 96) if size in ("medium", "timer") else (case.context, case.horizon)
    t = np.arange(8000)
    table = Table(np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + 0.1 * np.sin(t)[:, None], ["a", "b"])
    independent = adapter.channel_independent
    lengths = {"context_length": context, "prediction_length": horizon, "stride": 4, "channel_independent": independent}
    data = ForecastData(table, "0.4,0.3,0.3", **lengths)
    if epochs > 1:
        data = ForecastData(table, "0.4,0.3,0.3", **lengths, train_fraction=2 * options["batch_size"] / len(data.train))
    taken = inspect.signature(resolve_settings).parameters
    given = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in taken}
    given = {**given, **options}
    given.pop("adapter")
    settings = resolve_settings(adapter, **given)
    predicted = MemoryModel(adapter, data, settings, in_memory=True).predict(settings)
    result = finetune(adapter, data, "sff", max_steps=3 if epochs == 1 else None, epochs=epochs, **options)
    return {**predicted.to_json(), "measured": result.peak_bytes}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
