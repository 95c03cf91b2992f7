"""The report of a run, a comparison, a sweep or a landscape: a self-contained HTML page and its pictures.

:func:`write` and :func:`write_landscape` are all that a caller needs. Each part of the page has one module: ``rows`` (the
table), ``panels``, ``differences``, ``alphas``, ``sweep``, ``imputation``, ``anomaly`` and ``landscapes`` (what is drawn),
``windows`` (the forecasts that are drawn), ``theme`` (colours and names), ``render`` (SVG and PNG), ``page`` (HTML) and
``provenance``. A new section is a list of panels more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sff_fast.errors import ArgumentError, require
from sff_fast.files import atomic_write, read_json
from sff_fast.report import alphas, differences, further, landscapes, page, panels, provenance, render, rows, sweep, theme
from sff_fast.report.panels import History
from sff_fast.report.windows import ForecastWindow

__all__ = ["ForecastWindow", "check_packages", "write", "write_landscape"]

#: Where a run's own landscape lies in its folder, for the run's report to show.
LANDSCAPE = "landscape"


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


_SWEPT = (
    "Means over seeds with 95 % intervals. The ring marks the choice, which validation alone makes; only that alpha and the "
    "lines were tested, once."
)
_COMPARED = (
    "Means over seeds with 95 % intervals. The ring marks the choice, which validation alone makes. The test errors of other "
    "alphas say how much the choice matters, and are no reason for another one."
)


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
    """Write ``report.html``, ``comparison.png``, ``learning_curves.png`` and ``forecasts.png``, and ``alphas.png`` where
    several alphas were compared.

    A landscape that was measured into the folder ``landscape`` beside the report is shown in it.

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
    cost = panels.cost_panels(metrics)
    swept = "sweep" in metrics
    by_alpha = sweep.sweep_panels(metrics) if swept else alphas.alpha_panels(metrics)
    learning = panels.learning_panels(metrics, histories)
    shown = panels.forecast_panels(forecasts)
    sections = [
        page.Section(
            "comparison",
            "By strategy",
            "Bars are means over seeds, whiskers one standard deviation where there are several; the dashed line is "
            "the zero-shot model. A difference is the mean over pairs of runs of one seed, with its 95 % interval; one that "
            "holds zero shows no difference.",
            [*comparison, *differences.difference_panels(metrics)],
        ),
        page.Section(
            "alphas",
            "By alpha",
            _SWEPT if swept else _COMPARED,
            by_alpha,
        ),
        page.Section(
            "learning",
            "Learning curves",
            "One line a run. The ring marks the epoch that was kept. Epoch 0 is the model before training, for SFF "
            "already smoothed; it is no candidate unless the run asked for it (--keep-initial). Of several alphas all but the "
            "one that validation prefers are faint.",
            learning,
        ),
        page.Section(
            "forecasts",
            "Forecasts on the test part",
            "In the data's own units. The tuned model shown is the one that validation chose; "
            "the windows are evenly spaced over time and channels. Shaded, for models that forecast a distribution: from its "
            "10 % to its 90 % quantile.",
            shown,
        ),
        page.Section(task, *_TASK_SECTIONS.get(task, ("", "")), list(task_panels)),
        page.Section(
            "breakdown",
            "Where the errors are",
            "On the test part, mean over seeds: how the error grows with the horizon, and which channels are hard. Of several "
            "alphas the one that validation prefers.",
            panels.breakdown_panels(metrics),
        ),
        *_beside(folder),
        page.Section("cost", "Cost", "Training, validation and test of one run, mean over seeds.", cost),
    ]
    text = page.build(
        metrics["verdict"],
        str(metrics["sff_fast"]),
        [_results(metrics), *([_alphas(metrics)] if swept else []), *_further(metrics)],
        sections,
        provenance.facts(metrics, **(facts or {})),
        title,
        subtitle,
        None if arguments is None else provenance.command_line(arguments),
    )
    pictures = (
        ("comparison.png", [*comparison, *cost], 3),
        ("alphas.png", [] if swept else by_alpha, 2),  # a sweep has its own picture
        ("learning_curves.png", learning, 3),
        ("forecasts.png", shown, 2),
        (f"{task}.png", list(task_panels), 1 if task == "anomaly" else 2),
    )
    return _files(folder, text, pictures)


def write_landscape(
    out_dir: str | os.PathLike[str],
    metrics: Mapping[str, Any],
    *,
    arguments: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``report.html``, ``contours.png`` and ``surfaces.png`` of a landscape.

    Args:
        out_dir: An existing folder.
        metrics: The content of its ``metrics.json``.
        arguments: Command-line arguments that reproduce it.
        facts: Further facts for the provenance section, such as ``plan_hash``.

    Returns:
        The files written.

    Raises:
        MissingPackageError: matplotlib or jinja2 is not installed.
        OutputError: A file cannot be written.
    """
    check_packages()
    found, settings, data = metrics["landscape"], metrics["settings"], metrics["data"]
    contours, surfaces = landscapes.panels(found)
    table = page.Table(
        "results",
        "Centres",
        f"The loss is the family's own training loss, the mean over {settings['windows']} validation windows. The change nearby "
        f"is its mean within {settings['span'] / 2:g} of the centre, minus the centre's. The eigenvalue is the Hessian's "
        "greatest, with the norm of its residual, the trace an estimate with its standard error.",
        landscapes.COLUMNS,
        [page.Row(theme.style(strategy).role, cells) for strategy, cells in landscapes.table(found)],
        remarks=landscapes.left_out(found),
    )
    given = {**(facts or {}), "seed": settings["seed"]}
    given |= {"time": theme.format_seconds(metrics["seconds"]), "peak_memory": theme.format_bytes(metrics["peak_bytes"])}
    text = page.build(
        metrics["verdict"],
        str(metrics["sff_fast"]),
        [table],
        _landscape_sections(contours, surfaces),
        provenance.facts(metrics, **given),
        f"{metrics['variant']} on {Path(str(data['source'])).name}: landscape of the loss",
        f"{settings['grid']} x {settings['grid']} points along two random directions; {provenance.window_in_words(data)}",
        None if arguments is None else provenance.command_line(arguments),
    )
    return _files(Path(out_dir), text, (("contours.png", contours, 3), ("surfaces.png", surfaces, 3)))


def _results(metrics: Mapping[str, Any]) -> page.Table:
    """The table of all runs, zero-shot first."""
    lines = rows.result_rows(metrics)
    note = "Errors are on standardised data, over all windows of the part; lower is better."
    if any(line.chosen for line in lines):
        note += " The marked model is the tuned one that validation chose: its strategy has the lowest mean validation MSE "
        note += "over seeds."
    looks = {line.strategy: theme.style(line.strategy) for line in lines}
    return page.Table(
        "results",
        "Results",
        note,
        rows.COLUMNS,
        [page.Row(theme.style(line.strategy).role, line.cells(), "chosen" if line.chosen else "") for line in lines],
        [(look.label, look.meaning) for look in looks.values() if look.meaning],
    )


def _further(metrics: Mapping[str, Any]) -> list[page.Table]:
    """The table of what was measured beside MSE and MAE, if anything was."""
    columns, lines = further.further_rows(metrics)
    if not columns:
        return []
    cells = [page.Row(theme.style(row.strategy).role, cells, "chosen" if row.chosen else "") for row, cells in lines]
    return [page.Table("further", "Other measures", "On the test part, of the same models.", columns, cells)]


def _alphas(metrics: Mapping[str, Any]) -> page.Table:
    """The table of a sweep's points, of which the results hold the chosen one alone."""
    role = theme.style("sff").role
    pairs = zip(metrics["sweep"]["points"], sweep.table_rows(metrics), strict=True)
    # The note of a row that is not chosen says when it was left out; the mark says the rest.
    lines = []
    for point, (*cells, note) in pairs:
        mark = "chosen" if point["chosen"] else ""
        lines.append(page.Row(role, [*cells, "" if mark else note], mark))
    return page.Table("points", "Every alpha", "On the validation part, mean over seeds.", sweep.COLUMNS, lines)


def _beside(folder: Path) -> list[page.Section]:
    """The sections of the landscape that was measured of this run, if there is one."""
    path = folder / LANDSCAPE / "metrics.json"
    if not path.is_file():
        return []
    return _landscape_sections(*landscapes.panels(read_json(path)["landscape"]))


def _landscape_sections(contours: Sequence[panels.Panel], surfaces: Sequence[panels.Panel]) -> list[page.Section]:
    return [
        page.Section(
            "contours",
            "The loss around the weights",
            "The plane through the weights along two random directions, each filter of which is as long as the weights' own; "
            "1 is that length. The cross is the centre, the ring the lowest point of the grid where that is another. All "
            "centres share one scale; what lies above it is as strong as its end.",
            contours,
        ),
        page.Section("surfaces", "The same as surfaces", "Cut off where the scale of the contours ends.", surfaces),
    ]


def _files(folder: Path, text: str, pictures: Sequence[tuple[str, Sequence[panels.Panel], int]]) -> list[Path]:
    """Write the page and those pictures that have something in them."""
    written = []
    for name, drawn, columns in pictures:
        if drawn:
            render.to_png(folder / name, drawn, columns)
            written.append(folder / name)
    with atomic_write(folder / "report.html") as file:
        file.write(text.encode("utf-8", "replace"))
    return [folder / "report.html", *written]
