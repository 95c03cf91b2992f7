"""Colours, line styles and names of the strategies, the same in every picture, table and page.

The hues are close to Okabe and Ito's set, with lightness shifted until the six strategies stay apart under simulated
protanopia, deuteranopia and tritanopia (Machado et al. 2009) and keep at least 3:1 contrast on their background; tests
measure both. Every strategy also has its own marker and line style, so no picture depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Palette = Mapping[str, str]

LIGHT: Palette = {
    "surface": "#ffffff",
    "ink": "#1c2128",
    "muted": "#5d6673",
    "grid": "#e2e6eb",
    "zero-shot": "#7a7f86",
    "tfs": "#0b4f3d",
    "ff": "#0064a8",
    "sff": "#cf5200",
    "lp": "#db66b4",
    "lp-ff": "#5c4300",
    "other-1": "#3f7f93",
    "other-2": "#6f5bb5",
    "other-3": "#7a5a45",
    "other-4": "#4d6b00",
}

DARK: Palette = {
    "surface": "#12161c",
    "ink": "#e8edf3",
    "muted": "#9ba7b4",
    "grid": "#2c343e",
    "zero-shot": "#7b828c",
    "tfs": "#9df0cf",
    "ff": "#5cb2f2",
    "sff": "#ff9254",
    "lp": "#d8a8d4",
    "lp-ff": "#c27400",
    "other-1": "#7fc6da",
    "other-2": "#b3a2f0",
    "other-3": "#cfa88e",
    "other-4": "#a9cc4a",
}

#: Stand-in colours that the SVG writer replaces with ``var(--role)``, so that one drawing serves light and dark pages.
PLACEHOLDERS: Palette = {role: f"#fe{index:02x}a7" for index, role in enumerate(LIGHT)}


@dataclass(frozen=True)
class StrategyStyle:
    """How one strategy looks and what it is called."""

    label: str
    meaning: str
    role: str
    marker: str
    linestyle: str | tuple[int, tuple[float, ...]]


_STYLES = {
    "zero-shot": StrategyStyle("zero-shot", "the pre-trained model, not tuned at all", "zero-shot", "D", (0, (4, 2))),
    "tfs": StrategyStyle("TFS", "trained from scratch: random weights, all of them trained", "tfs", "^", (0, (1, 1.4))),
    "ff": StrategyStyle("FF", "full fine-tuning: all pre-trained weights trained", "ff", "s", (0, (5, 1.5))),
    "sff": StrategyStyle("SFF", "smoothed full fine-tuning: weights mixed with a random draw, then all trained", "sff", "o", "-"),
    "lp": StrategyStyle("LP", "linear probing: only the head trained", "lp", "v", (0, (3, 1, 1, 1))),
    "lp-ff": StrategyStyle("LP-FF", "linear probing first, then full fine-tuning", "lp-ff", "P", (0, (6, 1, 1, 1))),
    "noise": StrategyStyle("noise", "Gaussian noise of the size of SFF's change, then all trained", "other-1", "X", "-"),
    "shrink": StrategyStyle("shrink", "weights times alpha, then all trained", "other-2", "h", "-"),
    "perturb": StrategyStyle("perturb", "weights plus a share of a random draw, then all trained", "other-3", "d", "-"),
    "l2-sp": StrategyStyle("L2-SP", "all trained, held to the pre-trained weights by a penalty", "other-4", "<", (0, (4, 2))),
    "l2-init": StrategyStyle("L2-init", "all trained, drawn to a random start by a penalty", "other-1", ">", (0, (4, 2))),
    "mixout": StrategyStyle("Mixout", "all trained, a random part pre-trained in every step", "other-2", "p", (0, (4, 2))),
    "ema": StrategyStyle("EMA", "all trained, the weights averaged over the steps", "other-3", "*", (0, (4, 2))),
    "lora": StrategyStyle("LoRA", "low-rank updates of the linear layers", "other-4", "h", (0, (1, 1.4))),
    "sam": StrategyStyle("SAM", "all trained, by gradients a little uphill", "other-1", "d", (0, (1, 1.4))),
}
_SPARE_MARKERS = "XhdP<>p*"


def style(strategy: str) -> StrategyStyle:
    """The look of a strategy; one that this module does not know gets a spare colour by its name, always the same.

    Args:
        strategy: Name as on the command line, such as ``"lp-ff"``.

    Returns:
        Its style.
    """
    if strategy in _STYLES:
        return _STYLES[strategy]
    number = sum(strategy.encode())
    return StrategyStyle(strategy.upper(), "", f"other-{number % 4 + 1}", _SPARE_MARKERS[number % len(_SPARE_MARKERS)], "-")


def format_alpha(alpha: float | Mapping[str, float] | None) -> str:
    """alpha as text: ``0.7``, ``head.*=1, *=0.7`` for a mapping, empty for None."""
    if alpha is None:
        return ""
    if isinstance(alpha, Mapping):
        return ", ".join(f"{pattern}={value:g}" for pattern, value in alpha.items())
    return f"{alpha:g}"


def format_bytes(count: float | None) -> str:
    """A number of bytes in MiB or GiB, empty for None."""
    if count is None:
        return ""
    if count < 1024**3:
        return f"{count / 1024**2:.0f} MiB" if count >= 10 * 1024**2 else f"{count / 1024**2:.1f} MiB"
    return f"{count / 1024**3:.2f} GiB"


def format_seconds(seconds: float | None) -> str:
    """A duration as ``8.1 s``, ``3 min 05 s`` or ``2 h 10 min``, empty for None."""
    if seconds is None:
        return ""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_change(value: float, reference: float) -> str:
    """The change of an error against a reference in percent, with a real minus sign: ``−1.2 %``."""
    if reference == 0:
        return ""
    return f"{100 * (value / reference - 1):+.1f} %".replace("-", "−")
