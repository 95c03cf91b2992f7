"""Pictures of imputation: a few test windows with what was hidden, what is true and what each model put there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from sff_fast.data.validate import show_time
from sff_fast.report import theme
from sff_fast.report.panels import Panel, draw_legend, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sff_fast.adapters import Adapter
    from sff_fast.data import ImputationData


def imputation_panels(data: ImputationData, adapters: Mapping[str, Adapter], count: int = 6) -> list[Panel]:
    """Impute a few windows of the test part, evenly spaced over time, channels and rates.

    Args:
        data: The windows.
        adapters: Strategy name -> model.
        count: How many windows, at most one a test window.

    Returns:
        One panel a window; values in the data's own units.
    """
    count = min(count, len(data.test))
    indices = torch.tensor([(2 * number + 1) * len(data.test) // (2 * count) for number in range(count)])
    batch = data.test.batch(indices)
    found = {name: adapter.impute(batch.values, batch.mask).cpu() for name, adapter in adapters.items()}
    rows = data.test.positions(indices)[0].tolist()
    panels = []
    for number, first in enumerate(rows):
        # Of a window of all channels another one each time.
        column = 0 if batch.channel is not None else number % batch.values.shape[2]
        channel = int(batch.channel[number]) if batch.channel is not None else column

        def in_units(values: torch.Tensor, number: int = number, column: int = column, channel: int = channel) -> list[float]:
            return data.scaler.inverse(values[number, :, column], channel).tolist()

        stamps = data.table.timestamps
        start = f"row {first + 1}" if stamps is None else show_time(stamps[first])
        panels.append(
            _panel(
                f"{shorten(data.columns[channel], 22)}, from {start}",
                in_units(batch.values),
                batch.mask[number, :, column].tolist(),
                {name: in_units(values) for name, values in found.items()},
            )
        )
    return panels


def spans(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """First and row after the last of every run of True."""
    edges = [index for index in range(1, len(flags)) if flags[index] != flags[index - 1]]
    bounds = [0, *edges, len(flags)]
    return [(begin, end) for begin, end in itertools.pairwise(bounds) if flags[begin]]


def _panel(title: str, truth: Sequence[float], seen: Sequence[bool], imputed: Mapping[str, Sequence[float]]) -> Panel:
    hidden = spans([not one for one in seen])

    def draw(ax: Axes, palette: theme.Palette) -> None:
        for begin, end in hidden:
            ax.axvspan(begin - 0.5, end - 0.5, color=palette["grid"], zorder=0)
        ax.plot(range(len(truth)), truth, color=palette["ink"], linewidth=1.3, label="truth", zorder=3)
        for strategy, values in imputed.items():
            look = theme.style(strategy)
            for part, (begin, end) in enumerate(hidden):
                ax.plot(
                    range(begin, end),
                    values[begin:end],
                    color=palette[look.role],
                    linestyle=look.linestyle if strategy == "zero-shot" else "-",
                    linewidth=1.7,
                    label=look.label if part == 0 else None,
                    zorder=4 if strategy == "zero-shot" else 5,
                )
        ax.set_xlim(-0.5, len(truth) - 0.5)
        ax.set_xlabel("rows of the window; grey: hidden")
        ax.locator_params(axis="y", nbins=5)
        draw_legend(ax, palette)

    rows = [row for begin, end in hidden for row in range(begin, end)]
    errors = ", ".join(
        f"{theme.style(strategy).label} {fmean(abs(values[row] - truth[row]) for row in rows):.4g}"
        for strategy, values in imputed.items()
    )
    return Panel(
        title, f"Line chart: {title}, {len(rows)} of {len(truth)} rows hidden. Mean absolute error there: {errors}.", draw
    )
