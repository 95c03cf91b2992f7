"""Lightning: a callback that smooths once, when fitting begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from sff_fast.errors import ArgumentError, require
from sff_fast.integrations.record import SmoothingRecord
from sff_fast.smooth import SmoothReport, smooth_

require("lightning", "integrations")
import lightning  # noqa: E402  (behind the message that says how to install it)

if TYPE_CHECKING:
    from sff_fast.plan import InitPlan


class SmoothingCallback(lightning.Callback):
    """Smooths a module in place when ``fit`` begins, on every rank to the same bits; not in a run that goes on.

    Lightning keeps the record of it in its checkpoints.

    Args:
        plan: An :class:`~sff_fast.InitPlan`, a constructor, or None for a model that says itself how it is built.
        alpha: As for :func:`sff_fast.smooth_`, default 0.7.
        seed: Seed of the random stream, default 0.
        attribute: Where the LightningModule holds the model, dots for further levels; ``""`` for the LightningModule
            itself. Default ``"model"``.
        **options: Further arguments of :func:`sff_fast.smooth_`.

    Attributes:
        report: What the smoothing did; None before it and in a run that goes on.
    """

    def __init__(
        self,
        plan: InitPlan | Callable[[], nn.Module] | None = None,
        alpha: float | Mapping[str, float] | None = None,
        seed: int = 0,
        attribute: str = "model",
        **options: Any,
    ) -> None:
        self.plan, self.alpha, self.seed, self.attribute, self.options = plan, alpha, seed, attribute, options
        self.report: SmoothReport | None = None
        self.record: dict[str, Any] = {"smoothing": []}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Smooth, or take over the record of the checkpoint that fitting goes on from.

        Raises:
            ArgumentError: ``attribute`` names no module, the checkpoint is of a run that was not smoothed, or the model
                cannot be smoothed as asked.
        """
        model = self._model(pl_module)
        if self.record["smoothing"]:
            SmoothingRecord(model).load_state_dict(self.record)
            return
        if trainer.ckpt_path:
            raise ArgumentError(
                f"the run of {str(trainer.ckpt_path)!r} was not smoothed when it began: leave SmoothingCallback out, or fit "
                f"without ckpt_path"
            )
        self.report = smooth_(model, self.plan, self.alpha, self.seed, **self.options)
        self.record = SmoothingRecord(model).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps of this callback in its checkpoints."""
        return self.record

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was kept."""
        self.record = state_dict

    def _model(self, module: nn.Module) -> nn.Module:
        found: Any = module
        for part in self.attribute.split(".") if self.attribute else ():
            found = getattr(found, part, None)
        if not isinstance(found, nn.Module):
            raise ArgumentError(
                f"attribute must name a module of {type(module).__name__}, got {self.attribute!r}: its modules are "
                f"{', '.join(name for name, _ in module.named_children()) or 'none'}"
            )
        return found
