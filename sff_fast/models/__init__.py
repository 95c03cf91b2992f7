"""Model architectures that no package on PyPI provides, written for sff_fast."""

from sff_fast.models.timer import Timer, TimerConfig
from sff_fast.models.units import UniTS, UniTSConfig, UniTSTask

__all__ = ["Timer", "TimerConfig", "UniTS", "UniTSConfig", "UniTSTask"]
