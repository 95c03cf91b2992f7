"""transformers' ``Trainer``: a callback that smooths once before the first step, and the fused optimizer in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sff_fast import files
from sff_fast.checkpoints.work import SIDECAR
from sff_fast.errors import ArgumentError, require
from sff_fast.integrations.record import SmoothingRecord
from sff_fast.optim import FusedAdam, FusedAdamW
from sff_fast.smooth import SmoothReport, smooth_
from sff_fast.version import __version__

require("transformers", "integrations")
from transformers import TrainerCallback  # noqa: E402  (behind the message that says how to install it)
from transformers.trainer_callback import ExportableState  # noqa: E402

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from sff_fast.plan import InitPlan

_TRAINERS = {
    "release_gradients": "the Trainer accumulates and clips whole gradients",
    "max_norm": "the Trainer clips itself: set TrainingArguments(max_grad_norm=...)",
}


class SmoothingCallback(TrainerCallback, ExportableState):
    """Smooths the Trainer's model in place when training begins, and not again when it is resumed.

    Every checkpoint that the Trainer saves gets the file ``sff_fast.json``, which says with what seed, alpha and plan.

    Args:
        plan: An :class:`~sff_fast.InitPlan`, a constructor, or None (default): ``type(model)(model.config)``, as models of
            transformers are built.
        alpha: As for :func:`sff_fast.smooth_`, default 0.7.
        seed: Seed of the random stream, default 0.
        **options: Further arguments of :func:`sff_fast.smooth_`.

    Attributes:
        report: What the smoothing did; None before it and in a resumed run.
    """

    def __init__(
        self,
        plan: InitPlan | Callable[[], nn.Module] | None = None,
        alpha: float | Mapping[str, float] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.plan, self.alpha, self.seed, self.options = plan, alpha, seed, options
        self.report: SmoothReport | None = None
        self.record: dict[str, Any] = {"smoothing": []}

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps of this callback in ``trainer_state.json``."""
        return {"args": {}, "attributes": {"record": self.record}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Smooth, or take over the record of the run that is resumed.

        Raises:
            ArgumentError: The run that is resumed was not smoothed, or ``model`` cannot be smoothed as asked.
        """
        if state.global_step == 0:
            self.report = smooth_(model, self.plan, self.alpha, self.seed, **self.options)
            self.record = SmoothingRecord(model).state_dict()
            return
        kept = state.stateful_callbacks.get(type(self).__name__)
        record = kept["attributes"]["record"] if isinstance(kept, dict) else {"smoothing": []}
        if not record["smoothing"]:
            raise ArgumentError(
                f"the run resumed at step {state.global_step} was not smoothed when it began: leave SmoothingCallback out, or "
                f"start anew without resume_from_checkpoint"
            )
        SmoothingRecord(model).load_state_dict(record)
        self.record = record

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the record beside the weights."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files.write_json(folder / SIDECAR, {"sff_fast": __version__, **self.record})


def fused_optimizer(
    args: TrainingArguments, decoupled: bool = True, **options: Any
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The fused optimizer with the Trainer's own settings: ``Trainer(..., optimizer_cls_and_kwargs=fused_optimizer(args))``.

    Learning rate, betas and eps are those of ``args``; groups with and without weight decay are the Trainer's.

    Args:
        args: The Trainer's arguments.
        decoupled: FusedAdamW (True, default) or FusedAdam.
        **options: Further options of :class:`sff_fast.FusedAdamW`, such as ``state_dtype="int8"``.

    Returns:
        The class and its keyword arguments.

    Raises:
        ArgumentError: An option is the Trainer's business.
    """
    for name, reason in _TRAINERS.items():
        if options.get(name):
            raise ArgumentError(f"{name} cannot be used inside transformers' Trainer, got {options[name]!r}: {reason}")
    own = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return (FusedAdamW if decoupled else FusedAdam), {**own, **options}
