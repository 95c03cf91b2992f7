"""The drawings of the report, each one panel: a function that draws on matplotlib axes with the colours it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sff_fast.report import rows, theme
from sff_fast.report.windows import ForecastWindow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[Mapping[str, Any]]
#: A run and its (epoch, value) points.
Line = tuple[Mapping[str, Any], Sequence[tuple[int, float]]]

#: Entries beside each other in a legend, at most; letters that fit into a line, and how many a line's sample is as wide as.
_LEGEND_COLUMNS, _LEGEND_LETTERS, _LEGEND_SAMPLE = 4, 56, 6
#: Above this ratio of the largest to the smallest error a learning curve gets a logarithmic axis.
_LOG_RATIO = 4.0
#: Channels in one drawing; of more, those with the largest error are shown.
_MAX_CHANNELS = 20
#: Where training from scratch stretches the axis by more than this, the other strategies get a panel of their own.
_ZOOM_RATIO = 3.0


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Args:
        title: Short heading, shown above the drawing.
        alt: What a reader who cannot see the drawing should learn from it.
        draw: Draws it on axes with a palette.
        projection: matplotlib's name of the axes' projection; None for flat axes.
    """

    title: str
    alt: str
    draw: Callable[[Axes, theme.Palette], None]
    projection: str | None = None


def comparison_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """Test error by strategy.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        One panel.
    """
    return [_error_panel(rows.groups(metrics), metrics["zero_shot"].get("test_mse"))]


def cost_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """Time and peak memory by strategy.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        Up to two panels, each where the runs recorded it.
    """
    panels = []
    for key, title, text, note in (
        ("seconds", "Training time", theme.format_seconds, "time"),
        ("peak_bytes", "Peak memory", theme.format_bytes, "peak memory"),
    ):
        costs = {}
        for group in rows.groups(metrics):
            values = [metrics["runs"][index].get(key) for index in group.indices]
            present = [value for value in values if value is not None]
            if present:
                costs[group] = fmean(present)
        if costs:
            panels.append(_cost_panel(costs, title, text, note))
    return panels


def learning_panels(metrics: Mapping[str, Any], histories: Sequence[History]) -> list[Panel]:
    """Training loss and validation error by epoch, one line a run.

    Args:
        metrics: The content of ``metrics.json``.
        histories: For each of ``metrics["runs"]`` its epochs: mappings with ``epoch``, ``train_loss`` and ``val_mse``.

    Returns:
        Two panels, fewer where nothing was recorded.
    """
    panels = []
    for key, title, what in (
        ("train_loss", "Training loss", "training loss"),
        ("val_mse", "Validation MSE", "validation MSE"),
    ):
        lines = []
        for index, run in rows.tuned_runs(metrics):
            points = [(e["epoch"], e[key]) for e in histories[index] if e.get(key) is not None]
            points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
            if points:
                lines.append((run, points))
        if not lines:
            continue
        reference = metrics["zero_shot"].get("val_mse") if key == "val_mse" else None
        preferred = rows.preferred_alphas(metrics)
        panels.append(_learning_panel(lines, title, what, reference, preferred))
        others = [line for line in lines if line[0]["strategy"] != "tfs"]
        if key == "val_mse" and others and _span(lines, reference) > _ZOOM_RATIO * _span(others, reference):
            panels.append(_learning_panel(others, f"{title} without TFS", what, reference, preferred))
    return panels


def breakdown_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """Test error by step of the horizon and by channel, mean over seeds, where the metrics hold them.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        Up to two panels. Training from scratch is left out where it would flatten the others.
    """
    panels = []
    by_step = _detail(metrics, "mse_per_horizon")
    if by_step and len(next(iter(by_step.values()))) > 1:
        panels.append(_horizon_panel(by_step))
    by_channel = _detail(metrics, "mse_per_channel")
    channels = metrics["data"].get("columns", [])
    if by_channel and len(channels) > 1:
        panels.append(_channel_panel(by_channel, channels))
    return panels


def forecast_panels(windows: Sequence[ForecastWindow]) -> list[Panel]:
    """One panel a window: the end of the context, what came, and what each model forecast.

    Args:
        windows: The windows, in the data's own units.

    Returns:
        As many panels as windows.
    """
    return [_forecast_panel(window) for window in windows]


def _error_panel(grouped: Sequence[rows.Group], reference: float | None) -> Panel:
    parts = [f"zero-shot {rows.format_error(reference)}"] if reference is not None else []
    for group in grouped:
        spread = "" if group.spread is None else f" plus or minus {rows.format_error(group.spread)}"
        parts.append(f"{group.label} {rows.format_error(group.mean)}{spread}")

    def draw(ax: Axes, palette: theme.Palette) -> None:
        labels, texts = [], []
        values = []
        if reference is not None:
            labels.append("zero-shot")
            values.append(reference)
            texts.append(rows.format_error(reference))
            ax.barh(0, reference, height=0.62, color=palette["zero-shot"], alpha=0.9, zorder=2)
            ax.axvline(reference, color=palette["ink"], linewidth=1.0, linestyle=(0, (4, 2)), zorder=4)
        for group in grouped:
            y = len(labels)
            role = theme.style(group.strategy).role
            ax.barh(y, group.mean, height=0.62, color=palette[role], alpha=0.9, zorder=2)
            if group.spread is not None:
                ax.errorbar(
                    group.mean,
                    y,
                    xerr=group.spread,
                    color=palette["ink"],
                    capsize=3,
                    linewidth=1.2,
                    fmt="none",
                    zorder=5,
                )
            labels.append(group.label)
            values.append(group.mean + (group.spread or 0))
            text = rows.format_error(group.mean)
            texts.append(text if reference is None else f"{text} ({theme.format_change(group.mean, reference)})")
        _bar_axes(ax, labels, values, texts, palette, room=0.6)
        ax.set_xlabel("MSE on standardised data, lower is better", loc="left")

    return Panel("Test error", "Bar chart of the test MSE by strategy: " + "; ".join(parts) + ".", draw)


def _detail(metrics: Mapping[str, Any], key: str) -> dict[tuple[str, str], list[float]]:
    """A list-valued test metric by (strategy, label), zero-shot first, mean over seeds; empty where it was not kept."""
    found: dict[tuple[str, str], list[float]] = {}
    entry = _test_metric(metrics["zero_shot"], key)
    if entry is not None:
        found["zero-shot", "zero-shot"] = entry
    preferred = rows.preferred_alphas(metrics)
    for group in rows.groups(metrics):
        if group.alpha != preferred.get(group.strategy, group.alpha):
            continue
        lists = [_test_metric(metrics["runs"][index], key) for index in group.indices]
        lists = [values for values in lists if values is not None]
        if lists:
            found[group.strategy, group.label] = [fmean(column) for column in zip(*lists, strict=True)]
    others = {name: values for name, values in found.items() if name[0] != "tfs"}
    if others and len(others) < len(found):
        top = max(value for values in others.values() for value in values)
        if max(value for values in found.values() for value in values) > _ZOOM_RATIO * top:
            return others
    return found


def _test_metric(entry: Mapping[str, Any], key: str) -> list[float] | None:
    values = entry.get("metrics", {}).get("test", {}).get(key)
    return None if not values or any(value is None for value in values) else list(values)


def _horizon_panel(by_step: Mapping[tuple[str, str], list[float]]) -> Panel:
    def draw(ax: Axes, palette: theme.Palette) -> None:
        for (strategy, label), values in by_step.items():
            look = theme.style(strategy)
            ax.plot(
                range(1, len(values) + 1),
                values,
                color=palette[look.role],
                linestyle=look.linestyle,
                linewidth=1.6,
                label=label,
                zorder=4 if strategy == "sff" else 3,
            )
        ax.set_xlabel("step of the horizon")
        ax.set_ylabel("test MSE")
        ax.set_ylim(bottom=0)
        ax.margins(x=0.01)
        ax.grid(axis="y", color=palette["grid"], linewidth=0.8, zorder=0)
        draw_legend(ax, palette)

    ends = "; ".join(
        f"{label} from {rows.format_error(values[0])} at the first to {rows.format_error(values[-1])} at the last step"
        for (_, label), values in by_step.items()
    )
    return Panel("Test error by step", f"Line chart of the test MSE by step of the horizon: {ends}.", draw)


def _channel_panel(by_channel: Mapping[tuple[str, str], list[float]], channels: Sequence[str]) -> Panel:
    first = next(iter(by_channel.values()))
    order = sorted(range(len(channels)), key=lambda channel: -first[channel])[:_MAX_CHANNELS]

    def draw(ax: Axes, palette: theme.Palette) -> None:
        for y in range(len(order)):
            ax.axhline(y, color=palette["grid"], linewidth=0.8, zorder=1)
        for (strategy, label), values in by_channel.items():
            look = theme.style(strategy)
            ax.plot(
                [values[channel] for channel in order],
                range(len(order)),
                linestyle="none",
                marker=look.marker,
                markersize=6,
                markerfacecolor=palette[look.role] if strategy == "sff" else "none",
                markeredgecolor=palette[look.role],
                markeredgewidth=1.4,
                label=label,
                zorder=4 if strategy == "sff" else 3,
            )
        ax.set_yticks(range(len(order)), [shorten(channels[channel], 18) for channel in order])
        if len(order) > 12:
            ax.tick_params(axis="y", labelsize=7.5)
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.set_xlim(left=0)
        ax.set_xlabel("test MSE")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        draw_legend(ax, palette)

    hidden = len(channels) - len(order)
    title = "Test error by channel" if not hidden else f"Test error by channel, the {len(order)} hardest"
    text = "; ".join(
        f"{shorten(channels[channel], 40)} "
        + ", ".join(f"{label} {rows.format_error(values[channel])}" for (_, label), values in by_channel.items())
        for channel in order[:8]
    )
    return Panel(title, f"Dot chart of the test MSE by channel: {text}.", draw)


def _cost_panel(costs: Mapping[rows.Group, float], title: str, text: Callable[[float], str], note: str) -> Panel:
    def draw(ax: Axes, palette: theme.Palette) -> None:
        for y, (group, value) in enumerate(costs.items()):
            ax.barh(y, value, height=0.62, color=palette[theme.style(group.strategy).role], alpha=0.9, zorder=2)
        values = list(costs.values())
        _bar_axes(ax, [group.label for group in costs], values, [text(value) for value in values], palette, room=0.3)
        ax.set_xticks([])
        ax.set_xlabel(f"{note} of one run, mean over seeds", loc="left")

    parts = "; ".join(f"{group.label} {text(value)}" for group, value in costs.items())
    return Panel(title, f"Bar chart of the {note} by strategy: {parts}.", draw)


def _bar_axes(
    ax: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    palette: theme.Palette,
    room: float,
) -> None:
    """Labels on the left, values in one column on the right, ``room`` times the longest bar wide."""
    top = max([value for value in values if value > 0], default=1.0)
    for y, text in enumerate(texts):
        ax.text(1.04 * top, y, text, va="center", ha="left", color=palette["ink"], zorder=6)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlim(0, top * (1.04 + room))
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 1.04 * top])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=palette["grid"], linewidth=0.8, zorder=0)
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_bounds(0, 1.02 * top)


def _learning_panel(
    lines: Sequence[Line],
    title: str,
    what: str,
    reference: float | None,
    preferred: Mapping[str, str],
) -> Panel:
    def draw(ax: Axes, palette: theme.Palette) -> None:
        seen = set()
        for run, points in lines:
            look = theme.style(run["strategy"])
            wanted, alpha = preferred.get(run["strategy"]), theme.format_alpha(run.get("alpha"))
            faint = wanted not in (None, alpha)
            label = look.label if wanted is None else f"{look.label}, other alphas" if faint else f"{look.label} {alpha}"
            epochs, values = zip(*points, strict=True)
            ax.plot(
                epochs,
                values,
                color=palette[look.role],
                linestyle=look.linestyle,
                marker=look.marker,
                markersize=4.2 if len(epochs) <= 30 and not faint else 0,
                linewidth=0.9 if faint else 1.6,
                alpha=0.4 if faint else 1.0,
                label=None if label in seen else label,
                zorder=2 if faint else 4 if run["strategy"] == "sff" else 3,
            )
            seen.add(label)
            best = run.get("best_epoch")
            if what.startswith("validation") and best in epochs and not faint:
                ax.plot(
                    best,
                    values[epochs.index(best)],
                    marker="o",
                    markersize=9,
                    markerfacecolor="none",
                    markeredgecolor=palette["ink"],
                    markeredgewidth=1.0,
                    zorder=6,
                )
        everything = [value for _, points in lines for _, value in points]
        if reference is not None:
            everything.append(reference)
            ax.axhline(reference, color=palette["zero-shot"], linewidth=1.2, linestyle=(0, (4, 2)), label="zero-shot", zorder=2)
        if min(everything) > 0 and max(everything) / min(everything) > _LOG_RATIO:
            log_axis(ax)
        _epoch_axis(ax, sorted({epoch for _, points in lines for epoch, _ in points}))
        ax.set_xlabel("epoch")
        ax.set_ylabel(what)
        ax.grid(axis="y", color=palette["grid"], linewidth=0.8, zorder=0)
        draw_legend(ax, palette)

    ends = "; ".join(
        f"{theme.style(run['strategy']).label} seed {run.get('seed')} from {rows.format_error(points[0][1])} "
        f"to {rows.format_error(points[-1][1])}"
        for run, points in lines[:12]
    )
    zero = "" if reference is None else f" The zero-shot model has {rows.format_error(reference)}."
    return Panel(title, f"Line chart of the {what} by epoch: {ends}.{zero}", draw)


def _span(lines: Sequence[Line], reference: float | None) -> float:
    """The height that the lines, and the reference with them, take up."""
    values = [value for _, points in lines for _, value in points]
    values += [] if reference is None else [reference]
    return max(values) - min(values)


def log_axis(ax: Axes) -> None:
    """A logarithmic axis with a few labels in plain numbers, also where the data spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _epoch_axis(ax: Axes, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    if len(epochs) <= 10:
        ax.set_xticks(epochs)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)


def _forecast_panel(window: ForecastWindow) -> Panel:
    horizon = len(window.truth)
    shown = window.context[-horizon:]

    def draw(ax: Axes, palette: theme.Palette) -> None:
        past = range(-len(shown) + 1, 1)
        future = range(1, horizon + 1)
        ax.plot(past, shown, color=palette["muted"], linewidth=1.1, label="context", zorder=2)
        ax.plot([0, *future], [shown[-1], *window.truth], color=palette["ink"], linewidth=1.5, label="truth", zorder=3)
        for strategy, (low, high) in window.intervals.items():
            colour = palette[theme.style(strategy).role]
            ax.fill_between(future, low, high, color=colour, alpha=0.16, linewidth=0, zorder=1)
        for strategy, values in window.predictions.items():
            look = theme.style(strategy)
            ax.plot(
                future,
                values,
                color=palette[look.role],
                linestyle=look.linestyle if strategy == "zero-shot" else "-",
                linewidth=1.7,
                label=look.label,
                zorder=5 if strategy != "zero-shot" else 4,
            )
        ax.axvline(0.5, color=palette["muted"], linewidth=0.9, linestyle=":", zorder=1)
        ax.set_xlim(past[0] - 0.5, horizon + 0.5)
        ax.set_xlabel(f"steps after the context ({window.step})" if window.step else "steps after the context")
        ax.grid(axis="y", color=palette["grid"], linewidth=0.8, zorder=0)
        ax.locator_params(axis="y", nbins=5)
        draw_legend(ax, palette)

    errors = ", ".join(
        f"{theme.style(strategy).label} {fmean(abs(p - t) for p, t in zip(values, window.truth, strict=True)):.4g}"
        for strategy, values in window.predictions.items()
    )
    title = f"{shorten(window.channel, 22)}, from {window.start}"
    alt = f"Line chart: {window.channel}, {horizon} steps from {window.start}. Mean absolute error: {errors}."
    for strategy, (low, high) in window.intervals.items():
        inside = sum(a <= t <= b for a, t, b in zip(low, window.truth, high, strict=True))
        alt += f" The interval of {theme.style(strategy).label} holds {inside} of the {horizon} true values."
    return Panel(title, alt, draw)


def draw_legend(ax: Axes, palette: theme.Palette) -> None:
    """A legend above the axes, read row by row (matplotlib's own order is column by column)."""
    handles, labels = ax.get_legend_handles_labels()
    columns = legend_columns(labels)
    order = [index for column in range(columns) for index in range(column, len(labels), columns)]
    legend = ax.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        frameon=False,
        handlelength=1.9,
        columnspacing=1.0,
        borderaxespad=0.1,
        handletextpad=0.4,
    )
    for text in legend.get_texts():
        text.set_color(palette["ink"])


def legend_columns(labels: Sequence[str]) -> int:
    """How many entries of a legend stand beside each other: as many as fit, each column as wide as its longest name."""
    for columns in range(min(_LEGEND_COLUMNS, len(labels)), 1, -1):
        widths = [_LEGEND_SAMPLE + max(map(len, labels[column::columns])) for column in range(columns)]
        if sum(widths) <= _LEGEND_LETTERS:
            return columns
    return 1


def shorten(text: str, limit: int) -> str:
    """A label of at most ``limit`` characters, without control characters."""
    clean = "".join(character if character.isprintable() else "�" for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
