"""Where a result comes from: enough to run it again, and to know what it was run with."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

#: Modules that can change a result once they are imported, and the distributions whose versions tell which.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "transformers": "transformers",
    "chronos": "chronos-forecasting",
    "tsfm_public": "granite-tsfm",
    "momentfm": "momentfm",
    "sktime": "sktime",
    "uni2ts": "timecopilot-uni2ts",
    "timesfm": "timesfm",
    "timesfm3": "timesfm",
    "peft": "peft",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "hessian_eigenthings": "hessian-eigenthings",
    "matplotlib": "matplotlib",
}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that this process has imported and that can change a result."""
    versions = {"python": platform.python_version()}
    for module, package in PACKAGES.items():
        if module not in sys.modules:
            continue
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a module of that name from elsewhere
            continue
    return versions


def command_line(arguments: Sequence[str]) -> str:
    """The command as it would be typed.

    Args:
        arguments: The arguments after the program's name.

    Returns:
        One line, quoted for a POSIX shell.
    """
    return shlex.join(["sff-fast", *arguments])


def window_in_words(data: Mapping[str, Any]) -> str:
    """What a window is.

    Args:
        data: The ``data`` of a ``metrics.json``.
    """
    length = data["context_length"]
    task = data.get("task", "forecast")
    if task == "imputation":
        rates = ", ".join(f"{rate:.4g}" for rate in data["mask_rates"])
        return f"windows of {length} steps, patches of {data['patch_length']} hidden at a rate of {rates}"
    if task == "anomaly":
        return f"windows of {length} steps, segments of {data['segment_length']}"
    return f"{length} steps of context, {data['prediction_length']} steps ahead"


def facts(metrics: Mapping[str, Any], **more: Any) -> list[tuple[str, str]]:
    """What the provenance section lists, as name and text.

    Args:
        metrics: The content of ``metrics.json``.
        **more: Further facts; those that are None are left out.

    Returns:
        Pairs in reading order.
    """
    pairs: list[tuple[str, str]] = [
        ("family", str(metrics["family"])),
        ("random stream", f"version {metrics['stream_version']}"),
    ]
    seeds = sorted({run["seed"] for run in metrics.get("runs", []) if run.get("seed") is not None})
    if seeds:
        pairs.append(("seeds", ", ".join(map(str, seeds))))
    pairs += [(name.replace("_", " "), _text(value)) for name, value in more.items() if value is not None]
    pairs += [(f"data: {name}", value) for name, value in _flat(_without_bulk(metrics["data"]))]
    pairs += [(f"setting: {name}", value) for name, value in _flat(metrics.get("settings", {}))]
    pairs.append(("sff_fast", str(metrics["sff_fast"])))
    pairs += list(package_versions().items())
    pairs.append(("platform", f"{platform.system()} {platform.machine()}"))
    return [(name, value) for name, value in pairs if value]


def _without_bulk(data: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the data without the scaler's long lists, which metrics.json holds."""
    return {name: value for name, value in data.items() if name != "scaler"}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix} {key}".strip().replace("_", " "))
    else:
        yield prefix or "source", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return " ".join(_text(inner) for inner in value.values() if inner is not None)
    return str(value)
