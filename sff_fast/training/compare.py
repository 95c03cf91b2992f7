"""``compare``: several strategies, seeds and alphas, each from the pristine weights, and which of them to ship."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import tasks
from ..data import ForecastData
from ..distributed.group import refuse_several
from ..errors import ArgumentError, CheckpointError
from ..files import atomic_directory, make_directory, read_json, write_json
from .config import Settings, resolve_settings
from .fit import settle
from .identity import check_identity, describe, identity_of
from .interrupts import Interrupted, StopRequest, stop_requests
from .labels import ZERO_SHOT, alpha_text
from .log import RunLog
from .output import COMPARISON, alone_in_output, begin_output, check_output
from .pristine import PristineModel
from .progress import Progress, Silent
from .result import CompareResult, RunResult, build_metrics
from .run import finetune, finished_run, run_one, summary_of
from .strategies import STRATEGIES, check_trainable
from .verdict import choose
from .windows import WindowErrors

FORMAT = 1
OF_A_RUN = ("strategy", "alpha", "seed", "lp_epochs")
_NOT_OPTIONS = {"adapter", "data", "strategy", "alpha", "seed", "out", "resume", "overwrite", "progress", "plan", "parallel"}
DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(finetune).parameters.items() if name not in _NOT_OPTIONS
}


@alone_in_output
def compare(
    make_adapter: Callable[[], Any],
    data: ForecastData,
    strategies: Sequence[str] = (ZERO_SHOT, "ff", "sff"),
    seeds: Iterable[int] = (0,),
    alphas: Iterable[float | Mapping[str, float]] | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    plan: Any = None,
    **options: Any,
) -> CompareResult:
    """Fine-tune by several strategies, for several seeds, and say which model to ship.

    Every run starts from the pre-trained weights, which are put back into the one model that there is, from the pages of
    its checkpoint or from one copy on the host (:class:`PristineModel`): there is never a second model in memory. The
    zero-shot model has no seed and is evaluated once; its row is there whether it was asked for or not. The model to ship is
    chosen by validation MSE alone (:func:`choose` says how) and put into ``out/model``; each run's own is in
    ``out/runs/<strategy>[-alpha0.7]-seed0/model``. Strategies are compared by the differences between their runs of the
    same seed and the same windows.

    Args:
        make_adapter: Loads the model, such as ``lambda: sff_fast.load("ttm", path)``; called once.
        data: The windows.
        strategies: Names of strategies; see :func:`finetune`.
        seeds: The seeds. Default: 0 alone, which gives no idea of the noise.
        alphas: Alphas for ``sff``, each a run of its own. Default: the family's.
        out: Folder for everything. Default None: nothing is written, and only figures are returned.
        resume: Continue the comparison in ``out``: finished runs are kept, the interrupted one goes on.
        overwrite: Remove an earlier run or comparison in ``out`` first.
        progress: Told about every batch of every run.
        plan: The init plan for ``sff`` and ``tfs``. Default: that of each adapter.
        **options: The other arguments of :func:`finetune`, the same for all runs.

    Returns:
        The result.

    Raises:
        ArgumentError: A setting is not allowed.
        OutputError: ``out`` cannot be used.
        CheckpointError: ``resume`` was given, and ``out`` holds something else.
    """
    options = check_arguments("compare", make_adapter, options)
    refuse_several("a comparison")
    models = PristineModel(make_adapter)
    zero_shot, *tuned = _settings(models.pristine(), strategies, seeds, alphas, options)
    tasks.check(models.pristine(), data)
    folder = None if out is None else check_output(out, resume, overwrite, models.pristine().source)
    heaviest = max((zero_shot, *tuned), key=lambda settings: STRATEGIES[settings.strategy].tunes_fully)
    _, memory = settle(models.pristine(), data, heaviest, options, folder, overwrite, models.host_bytes)
    if memory is not None:
        models.spend()  # it may have been cast
        options.update(memory["chosen"])
        zero_shot, *tuned = _settings(models.pristine(), strategies, seeds, alphas, options)
    descriptions = [describe(models.pristine(), data, settings) for settings in (zero_shot, *tuned)]
    shared = {key: value for key, value in descriptions[0]["settings"].items() if key not in OF_A_RUN}
    own = {
        "lp_epochs": options["lp_epochs"],
        "runs": [{key: getattr(settings, key) for key in ("strategy", "alpha", "seed")} for settings in tuned],
    }
    description = {**descriptions[0], "settings": {**shared, **own}}
    begun = folder is not None and not overwrite and check_comparison(folder, identity_of(description))
    if begun and (folder / "metrics.json").exists():
        return _finished_comparison(folder, list(zip(tuned, descriptions[1:], strict=True)))
    if not begun:
        rehearse(models, tuned, plan)
    if folder is not None and not begun:
        begin_output(folder, overwrite)
        make_directory(folder / "state")
        write_json(folder / "state" / COMPARISON, {"format": FORMAT, "identity": identity_of(description)})
        if memory is not None:
            write_json(folder / "memory.json", memory)
    with stop_requests() as stop:
        try:
            return _run_all(
                models,
                data,
                list(zip((zero_shot, *tuned), descriptions, strict=True)),
                description,
                folder,
                stop=stop,
                progress=Silent() if progress is None else progress,
                plan=plan,
            )
        except Interrupted:
            stop.leave()
            raise


def check_arguments(what: str, make_adapter: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of :func:`finetune` with its defaults.

    Raises:
        ArgumentError: ``make_adapter`` is no function, or an option is none of :func:`finetune`.
    """
    if not callable(make_adapter):
        raise ArgumentError(
            "make_adapter must be a function that loads the model, such as lambda: sff_fast.load('timer', path), "
            f"got {type(make_adapter).__name__}"
        )
    for name in options:
        if name not in DEFAULTS:
            raise ArgumentError(f"{what} has no option {name!r}: it takes {', '.join(DEFAULTS)}")
    return {**DEFAULTS, **options}


def check_list(name: str, values: Sequence[Any]) -> None:
    """Refuse a list that is empty or holds something twice.

    Raises:
        ArgumentError: It does.
    """
    if not values:
        raise ArgumentError(f"{name} must not be empty")
    if any(values.index(value) != index for index, value in enumerate(values)):
        raise ArgumentError(f"{name} must not hold anything twice, got {values}")


def _settings(
    adapter: Any,
    strategies: Sequence[str],
    seeds: Iterable[int],
    alphas: Iterable[float | Mapping[str, float]] | None,
    options: Mapping[str, Any],
) -> list[Settings]:
    """The settings of every run, zero-shot first, then all strategies of one seed after the other."""
    if isinstance(strategies, str):
        raise ArgumentError(f"strategies must be a sequence of names, got the string {strategies!r}")
    strategies, seeds = list(strategies), list(seeds)
    alphas = None if alphas is None else list(alphas)
    for name, values in (("strategies", strategies), ("seeds", seeds), ("alphas", alphas)):
        if values is not None:
            check_list(name, values)
    if alphas is not None and not any(name in STRATEGIES and STRATEGIES[name].uses_alpha for name in strategies):
        users = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.uses_alpha)
        raise ArgumentError(f"alphas mean something to {users} only, and strategies are {', '.join(map(str, strategies))}")
    resolved = [resolve_settings(adapter, strategy=ZERO_SHOT, alpha=None, seed=0, **options)]
    for seed in seeds:
        for strategy in strategies:
            uses_alpha = strategy in STRATEGIES and STRATEGIES[strategy].uses_alpha
            for alpha in alphas if uses_alpha and alphas is not None else [None]:
                settings = resolve_settings(adapter, strategy=strategy, alpha=alpha, seed=seed, **options)
                if strategy != ZERO_SHOT:
                    resolved.append(settings)
    return resolved


def check_comparison(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds a comparison that was begun; one that is not this one is refused."""
    note = folder / "state" / COMPARISON
    if note.exists():
        then = read_json(note, error=CheckpointError)
        if then.get("format") != FORMAT:
            raise CheckpointError(
                f"the comparison in {str(folder)!r} has the format {then.get('format')!r}, this version reads {FORMAT}"
            )
        check_identity(folder, then["identity"], identity)
        return True
    if (folder / "metrics.json").exists() or any((folder / "state").glob("save-*")):
        raise CheckpointError(
            f"{str(folder)!r} holds a single run, no comparison: choose another folder, or start anew (overwrite)"
        )
    return False


def rehearse(models: PristineModel, tuned: Sequence[Settings], plan: Any) -> None:
    """Prepare the model once in every way that the runs will, so that what cannot work fails before hours of tuning."""
    done = set()
    for settings in tuned:
        strategy = STRATEGIES[settings.strategy]
        way = (settings.strategy, alpha_text(settings.alpha) if isinstance(settings.alpha, Mapping) else "")
        if way in done:
            continue
        done.add(way)
        check_trainable(models.pristine(), settings)
        if strategy.prepare is not None:
            strategy.prepare(models.pristine(), settings, plan)
            models.spend()


def _run_all(
    models: PristineModel,
    data: ForecastData,
    runs: list[tuple[Settings, dict[str, Any]]],
    description: dict[str, Any],
    folder: Path | None,
    *,
    stop: StopRequest,
    progress: Progress,
    plan: Any,
) -> CompareResult:
    results: list[RunResult] = []
    zero_shot: dict[str, Any] | None = None
    of_zero_shot: WindowErrors | None = None
    # Written anew by a resumed comparison: what is in it can be told from the finished runs.
    log = RunLog(None if folder is None else folder / "log.jsonl")
    try:
        log.write("start", **description)
        for number, (settings, run_description) in enumerate(runs):
            stop.check()
            run_folder = None if folder is None else folder / directory_of(settings)
            if run_folder is not None and (run_folder / "metrics.json").exists():
                result = finished_run(run_folder, identity_of(run_description))
            else:
                result = run_one(
                    models.pristine(),
                    data,
                    settings,
                    run_folder,
                    stop=stop,
                    progress=progress,
                    plan=plan,
                    zero_shot=zero_shot,
                    label=f"{Path(directory_of(settings)).name} ({number + 1} of {len(runs)})",
                    keep_model=number > 0,
                    keep_state=False,
                )
                if number > 0:
                    models.spend()
            if number == 0:
                zero_shot, of_zero_shot = result.zero_shot, result.windows
                log.write("zero_shot", **zero_shot)
            else:
                results.append(result)
                log.write("run", directory=directory_of(settings), **summary_of(result))
        entries = _entries([settings for settings, _ in runs[1:]], results)
        metrics = build_metrics(description, zero_shot, entries, [result.windows for result in results], of_zero_shot)
        model = None
        if folder is not None:
            model = _ship(models, folder, zero_shot, metrics["runs"])
        log.write("end", verdict=metrics["verdict"])
        log.sync()
        if folder is not None:
            write_json(folder / "metrics.json", metrics)
    finally:
        log.close()
    return _result(metrics, results, model)


def directory_of(settings: Settings) -> str:
    """Where a run of a comparison lies in its folder, such as ``runs/sff-alpha0.7-seed0``."""
    if settings.strategy == ZERO_SHOT:
        return f"runs/{ZERO_SHOT}"
    return f"runs/{settings.strategy}{alpha_text(settings.alpha)}-seed{settings.seed}"


def _entries(settings: Sequence[Settings], results: Sequence[RunResult]) -> list[dict[str, Any]]:
    pairs = zip(settings, results, strict=True)
    return [{**result.to_json(), "directory": directory_of(one)} for one, result in pairs]


def _ship(models: PristineModel, folder: Path, zero_shot: dict[str, Any], entries: list[dict[str, Any]]) -> Path:
    """Put the model that validation chooses into the comparison's own folder."""
    choice = choose(zero_shot, entries)
    target = folder / "model"
    if choice.ship:
        with atomic_directory(target, replace=True) as temporary:
            shutil.copytree(folder / choice.best["directory"] / "model", temporary, dirs_exist_ok=True)
    else:
        models.spend()  # the one that was evaluated may have been cast to another precision
        models.pristine().save(target, overwrite=True)
    return target


def _finished_comparison(folder: Path, tuned: list[tuple[Settings, dict[str, Any]]]) -> CompareResult:
    """The result of a comparison that has its ``metrics.json``."""
    metrics = read_json(folder / "metrics.json", error=CheckpointError)
    results = [finished_run(folder / directory_of(settings), identity_of(told)) for settings, told in tuned]
    return _result(metrics, results, folder / "model")


def _result(metrics: dict[str, Any], results: list[RunResult], model: Path | None) -> CompareResult:
    return CompareResult(
        zero_shot=metrics["zero_shot"],
        runs=results,
        summary=metrics["summary"],
        comparisons=metrics["comparisons"],
        verdict=metrics["verdict"],
        metrics=metrics,
        model_dir=model,
    )
