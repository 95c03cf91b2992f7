"""Fine-tuning by several processes: torchrun's ranks, DDP or FSDP2.

``sff_fast.finetune`` takes part in a job by itself. The pieces are usable alone, in other people's loops: see ``examples/``.
"""

from __future__ import annotations

from .group import Group, join, leave
from .parallel import Parallel, Program
from .samplers import ShareSampler, WindowSampler

__all__ = ["Group", "Parallel", "Program", "ShareSampler", "WindowSampler", "join", "leave"]
