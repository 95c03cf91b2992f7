"""Fine-tuning by several processes: torchrun's ranks, DDP or FSDP2, checkpoints that any number of ranks can read.

The pieces are usable alone, in other people's loops: see ``examples/``.
"""

from __future__ import annotations

from .evaluate import evaluate
from .group import Group, join
from .run import Result, finetune
from .samplers import ShareSampler, WindowSampler
from .wrapping import Program, wrap

__all__ = ["Group", "Program", "Result", "ShareSampler", "WindowSampler", "evaluate", "finetune", "join", "wrap"]
