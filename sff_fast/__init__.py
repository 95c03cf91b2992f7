"""Fine-tune large time series models well and cheaply.

Smoothed full fine-tuning starts from ``alpha * theta_pre + (1 - alpha) * theta_rand``. :func:`smooth_` does this in place
with random numbers that are regenerated inside one fused pass over the weights: no second model, the same bits on every
device, thread count and shard.

Names are imported when they are first used, so that ``import sff_fast`` costs nothing by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sff_fast.version import __version__

if TYPE_CHECKING:
    from sff_fast.adapters import families, load, tiny
    from sff_fast.backends import available_backends
    from sff_fast.checkpoints import smooth_checkpoint
    from sff_fast.data import AnomalyData, ForecastData, ImputationData, read_table
    from sff_fast.distributions import Constant, Materialized, Normal, TruncNormal, Uniform
    from sff_fast.errors import SffFastError
    from sff_fast.landscapes import landscape
    from sff_fast.optim import FusedAdam, FusedAdamW
    from sff_fast.plan import InitPlan
    from sff_fast.smooth import SmoothReport, fill_, smooth_, smoothing_of
    from sff_fast.stream import STREAM_VERSION
    from sff_fast.tracing import trace
    from sff_fast.training import compare, evaluate, finetune, sweep
    from sff_fast.verification import verify

_EXPORTS = {
    "sff_fast.adapters": ("families", "load", "tiny"),
    "sff_fast.backends": ("available_backends",),
    "sff_fast.checkpoints": ("smooth_checkpoint",),
    "sff_fast.data": ("AnomalyData", "ForecastData", "ImputationData", "read_table"),
    "sff_fast.distributions": ("Constant", "Materialized", "Normal", "TruncNormal", "Uniform"),
    "sff_fast.errors": ("SffFastError",),
    "sff_fast.landscapes": ("landscape",),
    "sff_fast.optim": ("FusedAdam", "FusedAdamW"),
    "sff_fast.plan": ("InitPlan",),
    "sff_fast.smooth": ("SmoothReport", "fill_", "smooth_", "smoothing_of"),
    "sff_fast.stream": ("STREAM_VERSION",),
    "sff_fast.tracing": ("trace",),
    "sff_fast.training": ("compare", "evaluate", "finetune", "sweep"),
    "sff_fast.verification": ("verify",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "STREAM_VERSION",
    "AnomalyData",
    "Constant",
    "ForecastData",
    "FusedAdam",
    "FusedAdamW",
    "ImputationData",
    "InitPlan",
    "Materialized",
    "Normal",
    "SffFastError",
    "SmoothReport",
    "TruncNormal",
    "Uniform",
    "__version__",
    "available_backends",
    "compare",
    "evaluate",
    "families",
    "fill_",
    "finetune",
    "landscape",
    "load",
    "read_table",
    "smooth_",
    "smooth_checkpoint",
    "smoothing_of",
    "sweep",
    "tiny",
    "trace",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sff_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
