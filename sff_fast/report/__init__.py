"""The report of a comparison or of one run: a self-contained HTML page and its pictures.

:func:`write` is all that a caller needs. Each part of the page has one module: ``rows`` (the table), ``panels`` (what
is drawn), ``windows`` (the forecasts that are drawn), ``theme`` (colours and names), ``render`` (SVG and PNG),
``page`` (HTML) and ``provenance``. A new section is a list of panels more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sff_fast.errors import ArgumentError, require
from sff_fast.files import atomic_write
from sff_fast.report import page, panels, provenance, render
from sff_fast.report.panels import History
from sff_fast.report.windows import ForecastWindow

__all__ = ["ForecastWindow", "check_packages", "write"]


_TASK_SECTIONS = {
    "imputation": (
        "Imputation on the test part",
        "In the data's own units. The tuned model shown is the one that validation chose; "
        "the windows are evenly spaced over time, channels and rates.",
    ),
    "anomaly": (
        "Anomaly scores over the test part",
        "A segment's score is the mean squared error between the series and what the model expects of it. "
        "The tuned model shown is the one that validation chose.",
    ),
}


def check_packages() -> None:
    """Fail now, not after the training, where a package that the report needs is missing.

    Raises:
        MissingPackageError: matplotlib or jinja2 is not installed; the message has the pip command.
    """
    require("matplotlib", "cli")
    require("jinja2", "cli")


def write(
    out_dir: str | os.PathLike[str],
    metrics: Mapping[str, Any],
    histories: Sequence[History],
    forecasts: Sequence[ForecastWindow] = (),
    *,
    task: str = "forecast",
    task_panels: Sequence[panels.Panel] = (),
    title: str = "Fine-tuning report",
    subtitle: str = "",
    arguments: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``report.html``, ``comparison.png``, ``learning_curves.png`` and ``forecasts.png``.

    Args:
        out_dir: An existing folder.
        metrics: The content of ``metrics.json``.
        histories: For each of ``metrics["runs"]``, in that order, its epochs: mappings with ``epoch``,
            ``train_loss`` and ``val_mse``.
        forecasts: Windows to show, in the data's own units.
        task: What the models were tuned for.
        task_panels: Drawings of another task than forecasting; written as ``<task>.png`` too.
        title: Heading of the page.
        subtitle: One line under it.
        arguments: Command-line arguments that reproduce the result.
        facts: Further facts for the provenance section, such as ``plan_hash``.

    Returns:
        The files written. A picture without content (no run, no window) is not written.

    Raises:
        ArgumentError: There is not one history a run.
        MissingPackageError: matplotlib or jinja2 is not installed.
        OutputError: A file cannot be written.
    """
    if len(histories) != len(metrics["runs"]):
        raise ArgumentError(
            f"histories must hold one list of epochs a run: {len(metrics['runs'])} runs, {len(histories)} histories"
        )
    check_packages()
    folder = Path(out_dir)
    comparison = panels.comparison_panels(metrics)
    learning = panels.learning_panels(metrics, histories)
    shown = panels.forecast_panels(forecasts)
    sections = [
        page.Section(
            "comparison",
            "By strategy",
            "Bars are means over seeds, whiskers one standard deviation where there are several; the dashed line is "
            "the zero-shot model.",
            comparison,
        ),
        page.Section(
            "learning",
            "Learning curves",
            "One line a run. The ring marks the epoch that was kept. Epoch 0 is the model before training, for SFF "
            "already smoothed; it is no candidate unless the run asked for it (--keep-initial).",
            learning,
        ),
        page.Section(
            "breakdown",
            "Where the errors are",
            "On the test part, mean over seeds: how the error grows with the horizon, and which channels are hard.",
            panels.breakdown_panels(metrics),
        ),
        page.Section(
            "forecasts",
            "Forecasts on the test part",
            "In the data's own units. The tuned model shown is the one that validation chose; "
            "the windows are evenly spaced over time and channels.",
            shown,
        ),
        page.Section(task, *_TASK_SECTIONS.get(task, ("", "")), list(task_panels)),
    ]
    text = page.build(
        metrics,
        sections,
        provenance.facts(metrics, **(facts or {})),
        title,
        subtitle,
        None if arguments is None else provenance.command_line(arguments),
    )
    written = []
    for name, drawn, columns in (
        ("comparison.png", comparison, 3),
        ("learning_curves.png", learning, 3),
        ("forecasts.png", shown, 2),
        (f"{task}.png", list(task_panels), 1 if task == "anomaly" else 2),
    ):
        if drawn:
            render.to_png(folder / name, drawn, columns)
            written.append(folder / name)
    with atomic_write(folder / "report.html") as file:
        file.write(text.encode("utf-8", "replace"))
    return [folder / "report.html", *written]
