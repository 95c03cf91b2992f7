"""A fresh process that predicts the memory of a run, then makes the run: ``memory_run.py SIZE OPTIONS-AS-JSON``.

Prints one line of JSON: the predicted and the measured peak.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings

import numpy as np
import torch

from sff_fast.adapters import Adapter, tiny
from sff_fast.data import ForecastData, Table
from sff_fast.training import finetune
from sff_fast.training.config import resolve_settings
from sff_fast.training.memory import MemoryModel


def model(size: str) -> Adapter:
    """The tiny Timer or TTM, or a Timer of 19 million parameters."""
    if size != "medium":
        return tiny(size)
    from sff_fast.adapters.timer import TimerAdapter
    from sff_fast.models import Timer, TimerConfig

    return TimerAdapter(Timer(TimerConfig(d_model=512, d_ff=2048, e_layers=6)).eval())


def main(size: str, options: dict[str, object]) -> dict[str, int]:
    """Predict, then run three steps."""
    torch.set_num_threads(1)
    adapter = model(size)
    context, horizon = (96, 24) if size == "ttm" else (960, 96)
    t = np.arange(8000)
    table = Table(np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + 0.1 * np.sin(t)[:, None], ["a", "b"])
    independent = adapter.channel_independent
    data = ForecastData(table, "0.4,0.3,0.3", context, horizon, stride=4, channel_independent=independent)
    taken = inspect.signature(resolve_settings).parameters
    given = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in taken}
    given = {**given, **options}
    given.pop("adapter")
    settings = resolve_settings(adapter, **given)
    predicted = MemoryModel(adapter, data, settings, in_memory=True).predict(settings)
    result = finetune(adapter, data, "sff", max_steps=3, epochs=1, **options)
    return {**predicted.to_json(), "measured": result.peak_bytes}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
