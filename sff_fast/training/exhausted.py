"""A run that there is not enough memory for says which settings would do with what there is."""

from __future__ import annotations

import dataclasses
import functools
import gc
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data import ForecastData
from ..distributed.group import launched
from ..errors import SffFastError
from ..exhaustion import exhausted, is_exhaustion, reason
from ..resident import return_freed_memory
from .config import Settings
from .fit import choose_settings, size_text, way_text
from .runtime import peak_memory
from .strategies import check_predicted


def explained(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``run(adapter, data, settings, folder, ...)`` say what to do where the memory is not enough.

    Raises:
        ExhaustedError: It is not.
    """

    @functools.wraps(run)
    def told(adapter: Any, data: ForecastData, settings: Settings, folder: Path | None, **options: Any) -> Any:
        try:
            return run(adapter, data, settings, folder, **options)
        except (MemoryError, RuntimeError) as error:
            if not is_exhaustion(error):
                raise
            why = reason(error)
            # What the run holds, gradients and states above all, is held by the frames of its traceback.
            traceback.clear_frames(error.__traceback__)
        peak = peak_memory(settings.device)
        gc.collect()
        return_freed_memory()
        if settings.device != "cpu":
            torch.cuda.empty_cache()
        raise exhausted(why, _advice(adapter, data, settings, folder, peak))

    return told


def _advice(adapter: Any, data: ForecastData, settings: Settings, folder: Path | None, peak: int) -> str:
    """What the memory that the run came to would do for."""
    again = "start again with it" + ("" if folder is None else " and --overwrite")
    least = "try a smaller --micro-batch or --batch-size, or --activation-checkpointing"
    if launched():
        return least  # the choice is made for one process
    limit = max(peak, 1 << 20)
    try:
        check_predicted(settings.strategy)
        limited = dataclasses.replace(settings, max_memory=limit)
        chosen, footprint = choose_settings(adapter, data, limited, {}, in_memory=folder is None)
    except SffFastError as error:
        return f"{least} ({error})"
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        return f"{least}; for a prediction as well there is too little"
    option = f"--max-memory {limit >> 20}M"
    return f"{option}, the peak that it came to, would choose {way_text(chosen)}, {size_text(footprint.peak)} predicted; {again}"
