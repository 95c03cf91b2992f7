"""Fine-tune large time series models well and cheaply.

Smoothed full fine-tuning starts from ``alpha * theta_pre + (1 - alpha) * theta_rand``. :func:`smooth_` does this in place
with random numbers that are regenerated inside one fused pass over the weights: no second model, the same bits on every
device, thread count and shard.
"""

from sff_fast.adapters import families, load, tiny
from sff_fast.backends import available_backends
from sff_fast.distributions import Constant, Materialized, Normal, TruncNormal, Uniform
from sff_fast.errors import SffFastError
from sff_fast.plan import InitPlan
from sff_fast.smooth import SmoothReport, fill_, smooth_, smoothing_of
from sff_fast.stream import STREAM_VERSION
from sff_fast.tracing import trace
from sff_fast.verification import verify
from sff_fast.version import __version__

__all__ = [
    "STREAM_VERSION",
    "Constant",
    "InitPlan",
    "Materialized",
    "Normal",
    "SffFastError",
    "SmoothReport",
    "TruncNormal",
    "Uniform",
    "__version__",
    "available_backends",
    "families",
    "fill_",
    "load",
    "smooth_",
    "smoothing_of",
    "tiny",
    "trace",
    "verify",
]
