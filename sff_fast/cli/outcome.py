"""What a finished ``finetune``, ``compare``, ``sweep`` or ``demo`` shows and writes beside the library's own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sff_fast.cli.exit_codes import DONE, NOT_FINITE

if TYPE_CHECKING:
    from sff_fast.adapters import Adapter
    from sff_fast.cli.job import Job
    from sff_fast.data import AnomalyData, ForecastData
    from sff_fast.training import RunResult


def finish(
    job: Job,
    metrics: Mapping[str, Any],
    runs: Sequence[RunResult],
    make_adapter: Callable[[], Adapter],
    data: ForecastData | AnomalyData,
    arguments: Sequence[str],
) -> int:
    """Write the report into ``out``, where there is one, then print the table and the verdict, or the metrics as JSON.

    Args:
        job: The output folder, if any, and whether to print JSON.
        metrics: The content of ``metrics.json``.
        runs: The results of ``metrics["runs"]``, in that order.
        make_adapter: Opens the pre-trained model.
        data: The windows.
        arguments: The command line, which the report repeats.

    Returns:
        The exit code: that of a run that stopped at a loss that was not finite, where there is one.
    """
    from sff_fast.cli.tables import print_results

    code = NOT_FINITE if any(run.diverged for run in runs) else DONE

    if job.out is not None:
        _write_report(job.out, metrics, runs, make_adapter, data, arguments)
    if job.as_json:
        click.echo(json.dumps(metrics, indent=2))
        return code
    print_results(metrics)
    if job.out is not None:
        click.echo(f"\nreport: {Path(job.out) / 'report.html'}")
    return code


def _write_report(
    out: str,
    metrics: Mapping[str, Any],
    runs: Sequence[RunResult],
    make_adapter: Callable[[], Adapter],
    data: ForecastData | AnomalyData,
    arguments: Sequence[str],
) -> None:
    from sff_fast import report
    from sff_fast.adapters import load
    from sff_fast.report.anomaly import anomaly_panels
    from sff_fast.report.imputation import imputation_panels
    from sff_fast.report.provenance import window_in_words
    from sff_fast.report.rows import best_run
    from sff_fast.report.windows import sample_windows

    zero_shot = make_adapter()
    adapters = {"zero-shot": zero_shot}
    best = best_run(metrics)
    if best is not None and runs[best].model_dir is not None:
        adapters[runs[best].strategy] = load(zero_shot.variant, runs[best].model_dir)
    source = Path(str(metrics["data"]["source"])).name
    described = metrics["data"]
    tuned = any(run["strategy"] != "zero-shot" for run in metrics["runs"])
    what = "sweep of alpha" if "sweep" in metrics else "fine-tuning" if tuned else "zero-shot"
    subtitle = (
        f"{window_in_words(described)}; windows: {', '.join(f'{count} {part}' for part, count in described['windows'].items())}"
    )
    task_panels = []
    if data.task == "imputation":
        task_panels = imputation_panels(data, adapters)
    elif data.task == "anomaly":
        task_panels = anomaly_panels(data, metrics)
    report.write(
        out,
        metrics,
        [run.history for run in runs],
        sample_windows(data, adapters) if data.task == "forecast" else (),
        task=data.task,
        task_panels=task_panels,
        title=f"{zero_shot.variant} on {source}: {what}",
        subtitle=subtitle,
        arguments=[argument for argument in arguments if argument != "--resume"],
        facts={"plan_hash": zero_shot.plan().hash},
    )
