"""accelerate: smoothing a prepared model, with its record in ``save_state`` and ``load_state``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from sff_fast.errors import require
from sff_fast.integrations.record import SmoothingRecord
from sff_fast.smooth import SmoothReport, smooth_, smoothing_of

require("accelerate", "integrations")

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sff_fast.plan import InitPlan


def track_smoothing(accelerator: Accelerator, model: nn.Module) -> SmoothingRecord:
    """Let ``accelerator.save_state`` keep how ``model`` was smoothed, and ``load_state`` bring it back.

    Call it before either, once for a model; ``load_state`` brings back the weights themselves.

    Args:
        accelerator: The accelerator.
        model: The model, prepared or not.

    Returns:
        What was registered for checkpointing.
    """
    record = SmoothingRecord(model)
    accelerator.register_for_checkpointing(record)
    return record


def smooth_once_(
    accelerator: Accelerator,
    model: nn.Module,
    plan: InitPlan | Callable[[], nn.Module] | None = None,
    alpha: float | Mapping[str, float] | None = None,
    seed: int = 0,
    *,
    resume_from: str | None = None,
    **options: Any,
) -> SmoothReport | None:
    """Smooth at the beginning of a run, or load the state of the one that goes on; on every rank to the same bits.

    Args:
        accelerator: The accelerator.
        model: The model, prepared or not; whatever wraps it is looked through.
        plan: As for :func:`sff_fast.smooth_`.
        alpha: As for :func:`sff_fast.smooth_`, default 0.7.
        seed: Seed of the random stream, default 0.
        resume_from: A folder that ``accelerator.save_state`` wrote, or None (default) for a run that begins.
        **options: Further arguments of :func:`sff_fast.smooth_`.

    Returns:
        What the smoothing did; None where a state was loaded that was smoothed before.

    Raises:
        ArgumentError: As :func:`sff_fast.smooth_`.
    """
    track_smoothing(accelerator, model)
    if resume_from is not None:
        accelerator.load_state(resume_from)
        if smoothing_of(model):
            return None
    return smooth_(model, plan, alpha, seed, **options)
