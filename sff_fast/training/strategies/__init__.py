"""The fine-tuning strategies: how each prepares the weights, what it trains, and what it does beside the loop.

Each strategy has a small module; the loop knows only :class:`Method`, the places where one may act.
"""

from __future__ import annotations

from typing import Any

from ...errors import ArgumentError
from ..config import Settings
from .averaging import Average
from .base import Phase, Strategy, trainable
from .lora import LowRank, check_lora
from .method import Method
from .mixout import Mixout
from .noise import add_noise
from .options import Option
from .penalties import L2Init, L2Start
from .preparing import fill, is_prepared, perturb, shrink, smooth
from .sam import SharpnessAware

__all__ = [
    "STRATEGIES",
    "Method",
    "Phase",
    "Strategy",
    "check_predicted",
    "check_processes",
    "check_trainable",
    "is_prepared",
    "trainable",
]

_ONE_SET = "one set of weights"

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("zero-shot", "the pre-trained model as it is", tunes_fully=False),
        Strategy("tfs", "train from scratch: the same architecture from a fresh random initialisation", fill),
        Strategy("ff", "full fine-tuning of the pre-trained weights"),
        Strategy("sff", "smooth the weights with a random initialisation, then full fine-tuning", smooth, uses_alpha=True),
        Strategy("lp", "linear probing: only the head is trained", probes=True, tunes_fully=False),
        Strategy("lp-ff", "linear probing, then full fine-tuning", probes=True),
        Strategy(
            "noise", "Gaussian noise of the norm of SFF's change, then full fine-tuning", add_noise, uses_alpha=True, alone=True
        ),
        Strategy("shrink", "weights times alpha, then full fine-tuning", shrink, uses_alpha=True),
        Strategy(
            "perturb", "weights plus (1 - alpha) of a random initialisation, then full fine-tuning", perturb, uses_alpha=True
        ),
        Strategy(
            "l2-sp",
            "full fine-tuning with a penalty on the distance to the pre-trained weights",
            method=L2Start,
            option=Option("penalty", 0.1, 0.0),
            whole_gradients=True,
            extra_memory=_ONE_SET,
            alone=True,
        ),
        Strategy(
            "l2-init",
            "full fine-tuning with a penalty on the distance to a random initialisation",
            method=L2Init,
            option=Option("penalty", 0.01, 0.0),
            whole_gradients=True,
            alone=True,
        ),
        Strategy(
            "mixout",
            "full fine-tuning with a random part of the weights pre-trained in every step",
            method=Mixout,
            option=Option("mixout_p", 0.9, 0.0, 0.999),
            whole_gradients=True,
            extra_memory="two sets of weights",
            alone=True,
        ),
        Strategy(
            "ema",
            "full fine-tuning; the average of the weights over the steps is kept",
            method=Average,
            option=Option("ema_decay", 0.999, 0.0, 1.0),
            extra_memory=_ONE_SET,
        ),
        Strategy(
            "lora",
            "low-rank updates of the linear layers, merged when saved",
            method=LowRank,
            option=Option("lora_rank", 8, 1),
            check=check_lora,
            extra_memory="low-rank layers instead of gradients and states of all weights",
            alone=True,
        ),
        Strategy(
            "sam",
            "full fine-tuning by gradients a little uphill (sharpness-aware minimisation)",
            method=SharpnessAware,
            option=Option("sam_rho", 0.05, 0.0, inclusive=False),
            whole_gradients=True,
            extra_memory=_ONE_SET,
            precisions=("fp32",),
            alone=True,
        ),
    )
}
"""Name to strategy, in the order in which they are listed and compared."""


def check_trainable(adapter: Any, settings: Settings) -> None:
    """Check that every phase of a run has something to train.

    Raises:
        ArgumentError: As :func:`trainable`.
    """
    for phase in STRATEGIES[settings.strategy].phases(settings):
        with trainable(adapter, phase):
            pass


def check_predicted(strategy: str) -> None:
    """Refuse to say how much memory a strategy takes, where that is not known.

    Raises:
        ArgumentError: It is not.
    """
    extra = STRATEGIES[strategy].extra_memory
    if extra:
        others = ", ".join(name for name, one in STRATEGIES.items() if not one.extra_memory)
        raise ArgumentError(f"the memory of strategy {strategy!r} is not predicted ({extra}): expected one of {others}")


def check_processes(strategy: str, processes: int) -> None:
    """Refuse a strategy that works in one process only.

    Raises:
        ArgumentError: There are several.
    """
    if processes > 1 and STRATEGIES[strategy].alone:
        others = ", ".join(name for name, one in STRATEGIES.items() if not one.alone)
        raise ArgumentError(f"strategy {strategy!r} works in one process, got {processes}: use one, or one of {others}")
