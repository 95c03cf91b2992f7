"""The landscape in pictures: contours and surfaces of the loss, on one scale for all centres, and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sff_fast.report import rows, theme
from sff_fast.report.panels import Panel, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("weights", "alpha", "loss", "change nearby", "lowest on the grid", "top eigenvalue", "trace")
#: Levels between two contours and colours.
_LEVELS = 11
#: The scale ends at this many times the height of the lowest centre's surroundings, so that one cliff does not flatten all.
_REACH = 6.0
#: Above this ratio of the greatest to the least loss the levels are spaced by ratio.
_LOG_RATIO = 4.0
#: Lines of a surface, at most, along each direction.
_LINES = 31


def panels(landscape: Mapping[str, Any]) -> tuple[list[Panel], list[Panel]]:
    """Contours and surfaces, one panel a centre each.

    Args:
        landscape: The ``landscape`` of a ``metrics.json``.

    Returns:
        The contour panels and the surface panels; none where no loss is finite.
    """
    centres = [centre for centre in landscape["centres"] if centre["lowest"] is not None]
    if not centres:
        return [], []
    levels = _levels(centres)
    axis = landscape["axis"]
    contours = [Panel(_title(centre), _alt("Contours", axis, centre), _contours(axis, centre, levels)) for centre in centres]
    surfaces = [
        Panel(_title(centre), _alt("Surface", axis, centre), _surface(axis, centre, levels), projection="3d")
        for centre in centres
    ]
    return contours, surfaces


def table(landscape: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Strategy (for the colour) and cells of :data:`COLUMNS` for every centre."""
    return [(centre["strategy"], _cells(centre)) for centre in landscape["centres"]]


def left_out(landscape: Mapping[str, Any]) -> list[str]:
    """One sentence for every centre whose Hessian could not be had."""
    found = [(centre["name"], centre.get("hessian") or {}) for centre in landscape["centres"]]
    return [f"No Hessian of the {name} weights: {hessian['left_out']}." for name, hessian in found if "left_out" in hessian]


def _cells(centre: Mapping[str, Any]) -> list[str]:
    hessian, lowest = centre.get("hessian") or {}, centre["lowest"]
    place = "" if lowest is None else f"{rows.format_error(lowest['loss'])} at ({lowest['a']:.2g}, {lowest['b']:.2g})"
    return [
        centre["name"],
        theme.format_alpha(centre["alpha"]),
        rows.format_error(centre["loss"]) or "not finite",
        "not finite" if centre["rise"] is None else _signed(centre["rise"]),
        place.replace("-", "−"),
        _with_error(hessian.get("top_eigenvalue"), hessian.get("residual")),
        _with_error(hessian.get("trace"), hessian.get("trace_error")),
    ]


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}".replace("-", "−")
    return text if error is None else f"{text} ± {error:.2g}"


def _levels(centres: Sequence[Mapping[str, Any]]) -> list[float]:
    """Ascending levels that all centres share, from the lowest loss to where the picture is cut off."""
    finite = sorted(loss for centre in centres for row in centre["losses"] for loss in row if loss is not None)
    low, high = finite[0], finite[-1]
    middle = finite[len(finite) // 2]
    high = min(high, low + _REACH * (middle - low)) if middle > low else high
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6
    if low > 0 and high / low > _LOG_RATIO:
        return [low * (high / low) ** (step / _LEVELS) for step in range(_LEVELS + 1)]
    return [low + (high - low) * step / _LEVELS for step in range(_LEVELS + 1)]


def _grid(centre: Mapping[str, Any], top: float) -> Any:
    """The losses with direction 0 along the columns, cut off at the top; what is not finite is as high as that."""
    import numpy as np

    losses = np.array([[math.inf if loss is None else loss for loss in row] for row in centre["losses"]], dtype=float)
    return np.minimum(losses, top).T


def _title(centre: Mapping[str, Any]) -> str:
    alpha = theme.format_alpha(centre["alpha"])
    return shorten(f"{centre['name']}, alpha {alpha}" if alpha else centre["name"], 44)


def _alt(kind: str, axis: Sequence[float], centre: Mapping[str, Any]) -> str:
    lowest = centre["lowest"]
    around = "not finite everywhere nearby" if centre["rise"] is None else f"{_signed(centre['rise'])} nearby on average"
    return (
        f"{kind} of the loss around the {centre['name']} weights, from {axis[0]:g} to {axis[-1]:g} along two directions: "
        f"{rows.format_error(centre['loss']) or 'not finite'} at the centre, {around}, lowest "
        f"{rows.format_error(lowest['loss'])} at ({lowest['a']:.3g}, {lowest['b']:.3g})."
    )


def _contours(axis: Sequence[float], centre: Mapping[str, Any], levels: Sequence[float]) -> Any:
    def draw(ax: Axes, palette: theme.Palette) -> None:
        from matplotlib.colors import to_rgba

        losses = _grid(centre, levels[-1])
        role = palette[theme.style(centre["strategy"]).role]
        # One colour, ever more opaque with height: so that the same drawing serves light and dark pages.
        shades = [to_rgba(role, 0.04 + 0.8 * step / _LEVELS) for step in range(_LEVELS)]
        ax.contourf(axis, axis, losses, levels=levels, colors=shades, antialiased=False, zorder=1)
        lines = ax.contour(axis, axis, losses, levels=levels[1:-1], colors=[palette["ink"]], linewidths=0.5, alpha=0.55, zorder=2)
        labels = ax.clabel(lines, lines.levels[::2], fmt=lambda level: f"{level:.3g}", fontsize=8.5, inline_spacing=3)
        for label in labels:
            label.set_color(palette["ink"])
        ax.plot(0, 0, marker="+", markersize=11, markeredgewidth=1.8, color=palette["ink"], zorder=5)
        lowest = centre["lowest"]
        if (lowest["a"], lowest["b"]) != (0, 0):
            ring = {"color": palette["ink"], "markerfacecolor": "none", "markeredgecolor": palette["ink"], "markeredgewidth": 1.3}
            ax.plot(lowest["a"], lowest["b"], marker="o", markersize=8, zorder=5, **ring)
        ax.set_aspect("equal")
        ax.locator_params(nbins=5)
        ax.set_xlabel("direction 0")
        ax.set_ylabel("direction 1")

    return draw


def _surface(axis: Sequence[float], centre: Mapping[str, Any], levels: Sequence[float]) -> Any:
    def draw(ax: Any, palette: theme.Palette) -> None:
        import numpy as np

        losses = _grid(centre, levels[-1])
        role = palette[theme.style(centre["strategy"]).role]
        along, across = np.meshgrid(axis, axis)
        lines = min(_LINES, len(axis))
        mesh = {"rcount": lines, "ccount": lines, "shade": False, "linewidth": 0.7, "antialiased": True}
        ax.plot_surface(along, across, losses, color=palette["surface"], edgecolor=role, **mesh)
        ax.set_zlim(levels[0], levels[-1])
        ax.view_init(elev=32, azim=-55)
        ax.locator_params(nbins=4)
        ax.set_xlabel("direction 0")
        ax.set_ylabel("direction 1")
        ax.set_zlabel("loss")

    return draw
