"""Model architectures that no package on PyPI provides, written for sff_fast."""

from sff_fast.models.timer import Timer, TimerConfig

__all__ = ["Timer", "TimerConfig"]
