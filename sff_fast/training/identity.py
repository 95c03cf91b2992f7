"""What a run is: described in ``metrics.json`` and in every state, and what a resumed run must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import ForecastData
from ..errors import CheckpointError
from .config import Settings
from .log import as_json


def describe(adapter: Any, data: ForecastData, settings: Settings) -> dict[str, Any]:
    """What is run, as ``metrics.json`` holds it."""
    return as_json(
        {
            "family": adapter.family,
            "variant": adapter.variant,
            "model": adapter.config(),
            "data": data.describe(),
            "settings": settings.identity(),
        }
    )


def identity_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must agree on: the description, but not where the data file lies (its hash is compared)."""
    identity = {key: description[key] for key in ("family", "variant", "model", "data", "settings")}
    return {**identity, "data": {key: value for key, value in identity["data"].items() if key != "source"}}


def check_identity(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a run as something that it was not.

    Raises:
        CheckpointError: They differ; the message names every difference.
    """
    found = differences(then, now)
    if found:
        raise CheckpointError(
            f"cannot resume the run in {str(folder)!r}, which is another one ({'; '.join(found)}): "
            "repeat its settings, choose another folder, or start anew (overwrite)"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested dictionaries of JSON values differ, as ``"settings.lr: 3e-05 then, 0.0001 now"``."""
    found = []
    for key in sorted({*old, *new}):
        then, now = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            found += differences(then, now, f"{prefix}{key}.")
        elif then != now:
            found.append(f"{prefix}{key}: {_short(then)} then, {_short(now)} now")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
