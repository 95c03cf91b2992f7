"""What a fine-tuning run is asked to do, checked once, before anything is written."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ArgumentError
from ..optim import check_optimizer_state, default_optimizer, has_states
from ..smooth import RNGS
from .recompute import check_recompute
from .schedules import SCHEDULES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-sr": torch.bfloat16}

EVAL_BATCH_SIZE = 256
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])?(?:iB|B)?", re.IGNORECASE)

# Settings that change how often something is saved, not what the run computes: a resumed run may change them.
_FREE_ON_RESUME = frozenset({"checkpoint_every"})
# Left out where they mean nothing, so that runs of the other strategies are described as before there were these.
_OF_SINGLE_STRATEGIES = frozenset({"penalty", "mixout_p", "ema_decay", "lora_rank", "sam_rho"})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one run, resolved: no ``None`` is left that stands for a default.

    ``alpha`` is None for the strategies that do not smooth, ``lp_epochs`` for those without a linear-probing phase, and an
    option of single strategies (``penalty`` to ``sam_rho``) for all others.
    ``max_memory`` is what was asked for, in bytes; the settings that it decides are those that were chosen.
    """

    strategy: str
    alpha: float | dict[str, float] | None
    seed: int
    rng: str
    epochs: int
    batch_size: int
    lr: float
    max_steps: int | None
    schedule: str
    patience: int | None
    optimizer: str
    optimizer_state: str | None
    weight_decay: float
    grad_clip: float | None
    precision: str
    release_gradients: bool
    activation_checkpointing: bool
    micro_batch: int
    max_memory: int | None
    lp_epochs: int | None
    penalty: float | None
    mixout_p: float | None
    ema_decay: float | None
    lora_rank: int | None
    sam_rho: float | None
    keep_initial: bool
    again: bool
    deterministic: bool
    device: str
    eval_batch_size: int
    checkpoint_every: int | None

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON holds them."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE_ON_RESUME}
        values = {name: value for name, value in values.items() if value is not None or name not in _OF_SINGLE_STRATEGIES}
        return values | {"device": self.device.partition(":")[0]}


def resolve_settings(
    adapter: Any,
    *,
    strategy: str,
    alpha: float | Mapping[str, float] | None,
    seed: int,
    rng: str,
    epochs: int,
    batch_size: int,
    lr: float | None,
    max_steps: int | None,
    schedule: str,
    patience: int | None,
    optimizer: str | None,
    optimizer_state: str | None,
    weight_decay: float,
    grad_clip: float | None,
    precision: str | None,
    release_gradients: bool | None,
    activation_checkpointing: bool | None,
    micro_batch: int | None,
    max_memory: int | str | None,
    lp_epochs: int | None,
    penalty: float | None,
    mixout_p: float | None,
    ema_decay: float | None,
    lora_rank: int | None,
    sam_rho: float | None,
    keep_initial: bool,
    again: bool,
    deterministic: bool,
    device: str,
    eval_batch_size: int | None,
    checkpoint_every: int | None,
) -> Settings:
    """Check every setting and fill in the family's defaults.

    Raises:
        ArgumentError: A setting lies outside of what is allowed; the message names it.
    """
    from .strategies import STRATEGIES, check_predicted
    from .strategies.options import resolve_own

    if strategy not in STRATEGIES:
        raise ArgumentError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    chosen = STRATEGIES[strategy]
    if schedule not in SCHEDULES:
        raise ArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if rng not in RNGS:
        raise ArgumentError(f"rng must be one of {', '.join(RNGS)}, got {rng!r}")
    precision = "fp32" if precision is None else precision
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    release_gradients = bool(release_gradients)
    only_ours = {
        "precision='bf16-sr'": precision == "bf16-sr",
        "release_gradients=True": release_gradients,
        "optimizer_state": optimizer_state is not None,
    }
    optimizer = default_optimizer(any(only_ours.values())) if optimizer is None else optimizer
    check_optimizer_state(optimizer, optimizer_state)
    for option, asked in only_ours.items():
        if asked and not has_states(optimizer):
            raise ArgumentError(f"{option} needs optimizer fused-adam or fused-adamw, got optimizer={optimizer!r}")
    if precision not in chosen.precisions:
        raise ArgumentError(f"precision must be {' or '.join(chosen.precisions)} for {strategy}, got {precision!r}")
    if chosen.whole_gradients and release_gradients:
        raise ArgumentError(f"release_gradients must be False for {strategy}, which needs all gradients at once, got True")
    if max_memory is not None:
        check_predicted(strategy)
    if chosen.check is not None:
        chosen.check(adapter)
    if activation_checkpointing:
        check_recompute(adapter)
    batch_size = integer("batch_size", batch_size, 1)
    epochs = integer("epochs", epochs, 1)
    max_steps = None if max_steps is None else integer("max_steps", max_steps, 1)
    if chosen.probes and chosen.tunes_fully:
        if epochs < 2:
            raise ArgumentError(f"epochs must be at least 2 for {strategy} (one for each phase), got {epochs}")
        if max_steps == 1:
            raise ArgumentError(f"max_steps must be at least 2 for {strategy} (one for each phase), got 1")
        lp_epochs = epochs // 2 if lp_epochs is None else integer("lp_epochs", lp_epochs, 1)
        if lp_epochs >= epochs:
            raise ArgumentError(f"lp_epochs must be less than epochs (the full phase gets the rest), got {lp_epochs} of {epochs}")
    else:
        lp_epochs = None
    return Settings(
        strategy=strategy,
        alpha=_check_alpha(adapter.default_alpha if alpha is None else alpha) if chosen.uses_alpha else None,
        seed=integer("seed", seed, 0, 2**64 - 1),
        rng=rng,
        epochs=epochs,
        batch_size=batch_size,
        lr=number("lr", adapter.default_lr if lr is None else lr, 0.0, inclusive=False),
        max_steps=max_steps,
        schedule=schedule,
        patience=None if patience is None else integer("patience", patience, 1),
        optimizer=optimizer,
        optimizer_state=optimizer_state,
        weight_decay=number("weight_decay", weight_decay, 0.0),
        grad_clip=None if grad_clip is None else number("grad_clip", grad_clip, 0.0, inclusive=False),
        precision=precision,
        release_gradients=release_gradients,
        activation_checkpointing=bool(activation_checkpointing),
        micro_batch=batch_size if micro_batch is None else integer("micro_batch", micro_batch, 1, batch_size),
        max_memory=None if max_memory is None else parse_bytes("max_memory", max_memory),
        lp_epochs=lp_epochs,
        **resolve_own(
            chosen.option,
            {"penalty": penalty, "mixout_p": mixout_p, "ema_decay": ema_decay, "lora_rank": lora_rank, "sam_rho": sam_rho},
        ),
        keep_initial=bool(keep_initial),
        again=bool(again),
        deterministic=bool(deterministic),
        device=resolve_device(device),
        eval_batch_size=EVAL_BATCH_SIZE if eval_batch_size is None else integer("eval_batch_size", eval_batch_size, 1),
        checkpoint_every=None if checkpoint_every is None else integer("checkpoint_every", checkpoint_every, 1),
    )


def resolve_device(device: str | torch.device) -> str:
    """The device of a run: ``"auto"`` is CUDA's current device where there is one, else the CPU.

    Raises:
        ArgumentError: The device is unknown or not there.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ArgumentError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError(f"device {name!r} is not there: torch sees no CUDA device; use auto or cpu")
        if int(index or 0) >= torch.cuda.device_count():
            raise ArgumentError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA device(s)")
        return f"cuda:{int(index) if index else torch.cuda.current_device()}"
    return "cpu"


def parse_bytes(name: str, value: int | str) -> int:
    """A number of bytes: an integer, or text such as ``"6G"``, ``"1.5GiB"`` or ``"800M"`` in powers of 1024.

    Raises:
        ArgumentError: It is neither, or not positive.
    """
    found = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        number = int(float(found[1]) * 1024 ** "BKMGT".index((found[2] or "B").upper()))
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        number = 0
    if number < 1:
        raise ArgumentError(f"{name} must be a positive number of bytes such as 6G, 800M or 6442450944, got {value!r}")
    return number


def _check_alpha(alpha: float | Mapping[str, float]) -> float | dict[str, float]:
    if not isinstance(alpha, Mapping):
        return number("alpha", alpha, 0.0, 1.0)
    if not alpha:
        raise ArgumentError("alpha must be a number or a mapping of glob patterns to numbers, got an empty mapping")
    return {str(pattern): number(f"alpha[{pattern!r}]", value, 0.0, 1.0) for pattern, value in alpha.items()}


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer within bounds.

    Raises:
        ArgumentError: It is none.
    """
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise ArgumentError(f"{name} must be {expected}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be {expected}, got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ArgumentError(f"{name} must be {expected}, got {number}")
    return number


def number(name: str, value: Any, low: float, high: float | None = None, inclusive: bool = True) -> float:
    """A finite number within bounds.

    Raises:
        ArgumentError: It is none.
    """
    expected = f"a number of at least {low:g}" if inclusive else f"a number above {low:g}"
    expected = expected if high is None else f"a number from {low:g} to {high:g}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be {expected}, got {value!r}") from None
    if not math.isfinite(number) or number < low or (high is not None and number > high):
        raise ArgumentError(f"{name} must be {expected}, got {value!r}")
    if number == low and not inclusive:
        raise ArgumentError(f"{name} must be {expected}, got {value!r}")
    return number
