"""What a smoothing once did, kept in somebody else's checkpoints, so that resuming does not smooth again."""

from __future__ import annotations

from typing import Any

from torch import nn

from sff_fast.errors import CheckpointError
from sff_fast.smooth import VOLATILE, remember_smoothing, smoothing_of


class SmoothingRecord:
    """The records of a model's smoothing as a state that checkpoints can hold.

    Args:
        model: The model that is, or was, smoothed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """Plain values only; time and threads are left out, so that equal runs write equal files."""
        return {"smoothing": [{k: v for k, v in one.items() if k not in VOLATILE} for one in smoothing_of(self.model)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            CheckpointError: The state is something else.
        """
        records = state.get("smoothing") if isinstance(state, dict) else None
        if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
            raise CheckpointError(
                f"the record of smoothing must be a dict with a list under 'smoothing', got {state!r:.80}: the checkpoint is "
                f"damaged or of another kind"
            )
        remember_smoothing(self.model, records)
