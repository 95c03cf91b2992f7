"""Pictures of anomaly detection: the series, and the scores of its segments, with the labelled rows marked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sff_fast.report import rows, theme
from sff_fast.report.panels import Panel, draw_legend, log_axis
from sff_fast.tasks.anomaly import segment_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sff_fast.data import AnomalyData

#: Points of a series that are drawn; of more, the lowest and highest of every stretch.
_MOST_POINTS = 4000


def anomaly_panels(data: AnomalyData, metrics: Mapping[str, Any]) -> list[Panel]:
    """The test part and the scores of its segments by the zero-shot model and the tuned one that validation chose.

    Args:
        data: The series.
        metrics: The content of ``metrics.json``.

    Returns:
        Two panels above each other; the second only where a model's scores are finite.
    """
    scores = {"zero-shot": metrics["zero_shot"]}
    best = rows.best_run(metrics)
    if best is not None:
        scores[metrics["runs"][best]["strategy"]] = metrics["runs"][best]
    found = {name: entry["metrics"]["test"] for name, entry in scores.items()}
    found = {name: test for name, test in found.items() if "segment_scores" in test}
    return [_series_panel(data), *([_score_panel(data, found)] if found else [])]


def envelope(values: Sequence[float], most: int = _MOST_POINTS) -> tuple[list[int], list[float]]:
    """Positions and values to draw: all of them, or the lowest and highest of every stretch, in order."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) <= most:
        return list(range(len(array))), array.tolist()
    kept: set[int] = set()
    bounds = np.linspace(0, len(array), most // 2 + 1).astype(int)
    for begin, end in itertools.pairwise(bounds):
        kept.update((begin + int(array[begin:end].argmin()), begin + int(array[begin:end].argmax())))
    chosen = sorted(kept)
    return chosen, array[chosen].tolist()


def _series_panel(data: AnomalyData) -> Panel:
    begin, end = data.borders.test
    labels = data.labels

    def draw(ax: Axes, palette: theme.Palette) -> None:
        ax.axvspan(labels.begin, labels.end, color=palette["sff"], alpha=0.25, zorder=0, label="labelled anomaly")
        for channel, name in enumerate(data.columns):
            at, values = envelope(data.table.values[begin:end, channel])
            ax.plot(
                [begin + row for row in at],
                values,
                color=palette["ink"],
                linewidth=0.8,
                alpha=1.0 if len(data.columns) == 1 else 0.6,
                label=name if 1 < len(data.columns) <= 3 else None,
                zorder=3,
            )
        ax.set_xlim(begin, end)
        ax.set_xlabel("row")
        ax.locator_params(axis="x", nbins=5)
        draw_legend(ax, palette)

    alt = f"Line chart of rows {begin + 1} to {end}; rows {labels.begin + 1} to {labels.end} are labelled as the anomaly."
    return Panel("Test part of the series", alt, draw)


def _score_panel(data: AnomalyData, found: Mapping[str, Mapping[str, Any]]) -> Panel:
    begin, end = data.borders.test
    labels, step = data.labels, data.segment_length

    def draw(ax: Axes, palette: theme.Palette) -> None:
        ax.axvspan(labels.begin, labels.end, color=palette["sff"], alpha=0.25, zorder=0)
        for strategy, test in found.items():
            look = theme.style(strategy)
            edges = begin + segment_edges(end - begin, step)
            scores = test["segment_scores"]
            ax.stairs(
                scores,
                edges,
                baseline=None,
                color=palette[look.role],
                linewidth=1.4,
                linestyle=look.linestyle if strategy == "zero-shot" else "-",
                label=f"{look.label} {test['rank']}/{test['segments']}",
                zorder=4 if strategy == "zero-shot" else 5,
            )
        if all(score > 0 for test in found.values() for score in test["segment_scores"]):
            log_axis(ax)
        ax.set_xlim(begin, end)
        ax.set_xlabel("row")
        ax.set_ylabel("mean squared error")
        ax.locator_params(axis="x", nbins=5)
        draw_legend(ax, palette)

    ranks = "; ".join(f"{theme.style(name).label} rank {test['rank']} of {test['segments']}" for name, test in found.items())
    return Panel(
        "Score of each segment, rank of the labelled",
        f"Step chart of the score of every segment of {step} rows. The labelled segment with the highest score: {ranks}.",
        draw,
    )
