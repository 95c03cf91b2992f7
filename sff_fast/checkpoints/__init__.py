"""Checkpoints that need not fit into memory."""

from sff_fast.checkpoints.smoothing import CheckpointReport, smooth_checkpoint

__all__ = ["CheckpointReport", "smooth_checkpoint"]
