"""``sweep``: which alpha, chosen on the validation part alone; its test is the only one of all alphas that is ever made."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import tasks
from ..data import ForecastData
from ..distributed.group import refuse_several
from ..errors import ArgumentError, CheckpointError
from ..files import make_directory, read_json, write_json
from ..smooth import remember_smoothing
from .compare import OF_A_RUN, check_arguments, check_comparison, check_list, directory_of, rehearse
from .config import PRECISIONS, Settings, resolve_settings
from .evaluate import measure
from .fit import settle
from .groups import patterns_of
from .identity import describe, identity_of
from .interrupts import Interrupted, StopRequest, stop_requests
from .labels import ZERO_SHOT
from .log import RunLog, finite
from .output import COMPARISON, alone_in_output, begin_output, check_output
from .pristine import PristineModel
from .progress import Progress, Silent
from .result import CompareResult, RunResult, build_metrics
from .run import WEIGHTS, finished_run, measure_test, run_one, summary_of
from .runtime import determinism, seeded
from .state import iterate_safetensors
from .statistics import mean_and_std, paired_interval
from .strategies import STRATEGIES
from .verdict import choose
from .weights import load_weights
from .windows import FOLDER, load_windows

FORMAT = 1
ALPHAS = (0.3, 0.5, 0.7, 0.85, 0.9, 0.95)
BASELINES = ("ff", "tfs")
TESTED = "test.json"
"""In a run's folder: its test metrics."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of alpha, whatever the seed.

    Attributes:
        alpha: What the parameters get that no group has, the horizontal axis of the picture.
        groups: The alpha of each group, by the group's name.
        given: What :func:`finetune` takes as alpha: the number, or a mapping of name patterns.
    """

    alpha: float
    groups: dict[str, float]
    given: float | dict[str, float]

    @property
    def label(self) -> str:
        """``0.9``, or ``0.9, head=0.5``."""
        return ", ".join([f"{self.alpha:g}", *(f"{name}={value:g}" for name, value in self.groups.items())])


@alone_in_output
def sweep(
    make_adapter: Callable[[], Any],
    data: ForecastData,
    alphas: Iterable[float] = ALPHAS,
    seeds: Iterable[int] = range(5),
    out: str | Path | None = None,
    *,
    groups: Mapping[str, float | Sequence[float]] | None = None,
    baselines: Sequence[str] = BASELINES,
    halving: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    plan: Any = None,
    **options: Any,
) -> CompareResult:
    """Smooth by several alphas, several seeds each, and choose one of them on the validation part.

    Every run starts from the same pre-trained weights, put back into the one model in memory (:class:`PristineModel`). The
    alpha with the lowest validation MSE, mean over seeds, is chosen; only then its runs, and those of the baselines, are
    tested, once. The model to ship is chosen by validation as :func:`compare` does, and put into ``out/model``.

    With ``halving`` alphas get seeds step by step: after each step the better half goes on, until the last ones have all
    seeds (sequential halving, Karnin, Koren & Somekh, ICML 2013: a run with a new seed is a pull of an arm).

    A point is identified by its settings. ``resume`` keeps what is finished and goes on with the rest, to the same figures as
    a sweep that was never stopped; with more alphas or seeds than before it adds them.

    Args:
        make_adapter: Loads the model, such as ``lambda: sff_fast.load("ttm", path)``; called once.
        data: The windows.
        alphas: Shares of the pre-trained weights, from 0 to 1.
        seeds: The seeds of every alpha and baseline. Default 0 to 4.
        out: Folder for everything. It must be given: the best weights of runs wait there for their test.
        groups: Alphas of groups of parameters: ``"head"``, ``"embedding"``, ``"norms"`` or a name pattern, to a number or
            several; ``alphas`` are then those of all other parameters, and every combination is a point. The first group that
            has a parameter decides. Default: none.
        baselines: Strategies beside the zero-shot model to draw as lines and compare with. Default ``("ff", "tfs")``.
        halving: Whether to leave out alphas early. Default False: every alpha gets every seed.
        resume: Continue the sweep in ``out``.
        overwrite: Remove what is in ``out`` first.
        progress: Told about every batch of every run.
        plan: The init plan for ``sff`` and ``tfs``. Default: that of the adapter.
        **options: The other arguments of :func:`finetune`, the same for all runs.

    Returns:
        The result: ``runs`` are those that were tested, of the chosen alpha and of the baselines; ``metrics["sweep"]`` holds
        every point with the validation MSE of each seed.

    Raises:
        ArgumentError: A setting is not allowed.
        OutputError: ``out`` cannot be used.
        CheckpointError: ``resume`` was given, and ``out`` holds something else.
    """
    options = check_arguments("sweep", make_adapter, options)
    refuse_several("a sweep")
    if out is None:
        raise ArgumentError("out must be a folder: a sweep keeps the best weights of its runs there until one alpha is chosen")
    refuse_several("a sweep")
    models = PristineModel(make_adapter)
    tasks.check(models.pristine(), data)
    points = make_points(models.pristine(), alphas, groups)
    seeds = list(seeds)
    check_list("seeds", seeds)
    baselines = _check_baselines(baselines)
    folder = check_output(out, resume, overwrite, models.pristine().source)
    job = _Job(models, data, points, seeds, baselines, halving, folder, options, plan)
    heaviest = job.settings_of(points[0], seeds[0])
    _, memory = settle(models.pristine(), data, heaviest, options, folder, overwrite, models.host_bytes)
    if memory is not None:
        models.spend()  # it may have been cast
        options.update(memory["chosen"])
    begun = not overwrite and check_comparison(folder, identity_of(job.description))
    if begun and (folder / "metrics.json").exists():
        metrics = read_json(folder / "metrics.json", error=CheckpointError)
        if metrics["settings"] == finite(job.told["settings"]):
            return job.finished(metrics)
    if not begun:
        rehearse(models, [job.settings_of(one, seeds[0]) for one in (*points, *baselines)], plan)
        begin_output(folder, overwrite)
        make_directory(folder / "state")
        write_json(folder / "state" / COMPARISON, {"format": FORMAT, "identity": identity_of(job.description)})
        if memory is not None:
            write_json(folder / "memory.json", memory)
    with stop_requests() as stop:
        try:
            return job.run(stop, Silent() if progress is None else progress)
        except Interrupted:
            stop.leave()
            raise


def make_points(adapter: Any, alphas: Iterable[float], groups: Mapping[str, float | Sequence[float]] | None) -> list[Point]:
    """Every combination of the alphas of the groups, and of all other parameters.

    Raises:
        ArgumentError: A list is empty or holds something twice, or a group has no parameter.
    """
    alphas = list(alphas)
    check_list("alphas", alphas)
    lists, patterns = {}, {}
    for name, values in (groups or {}).items():
        lists[name] = list(values) if isinstance(values, Sequence) else [values]
        check_list(f"groups[{name!r}]", lists[name])
        patterns[name] = patterns_of(adapter, name)
    points = []
    for combination in itertools.product(*lists.values()):
        chosen = dict(zip(lists, combination))
        by_name = {pattern: chosen[name] for name in reversed(lists) for pattern in patterns[name]}
        ordered = {pattern: by_name[pattern] for name in lists for pattern in patterns[name]}
        points += [Point(alpha, chosen, {**ordered, "*": alpha} if chosen else alpha) for alpha in alphas]
    return points


def halving_steps(points: int, seeds: int) -> list[tuple[int, int]]:
    """How many points have how many seeds after each step: half as many points each time, the last two with all seeds.

    Args:
        points: Points at the beginning.
        seeds: Seeds of those that come to the end.
    """
    steps = max(1, math.ceil(math.log2(points)))
    left, found = points, []
    for step in range(1, steps + 1):
        found.append((left, max(1, math.ceil(seeds / 2 ** (steps - step)))))
        left = math.ceil(left / 2)
    return found


def _check_baselines(baselines: Sequence[str]) -> list[str]:
    if isinstance(baselines, str):
        raise ArgumentError(f"baselines must be a sequence of names, got the string {baselines!r}")
    names = [name for name in baselines if name != ZERO_SHOT]
    if any(names.index(name) != index for index, name in enumerate(names)):
        raise ArgumentError(f"baselines must not hold anything twice, got {names}")
    for name in names:
        if name in STRATEGIES and STRATEGIES[name].uses_alpha:
            raise ArgumentError(f"baselines must be strategies without an alpha of their own, got {name!r}")
    return names


class _Job:
    """A sweep in one folder."""

    def __init__(
        self,
        models: PristineModel,
        data: ForecastData,
        points: list[Point],
        seeds: list[int],
        baselines: list[str],
        halving: bool,
        folder: Path,
        options: dict[str, Any],
        plan: Any,
    ) -> None:
        self.models, self.data, self.points, self.seeds, self.baselines = models, data, points, seeds, baselines
        self.halving, self.folder, self.options, self.plan = halving, folder, options, plan
        self.steps = halving_steps(len(points), len(seeds)) if halving else [(len(points), len(seeds))]
        self.results: dict[tuple[str, int], RunResult] = {}
        self.left_out: dict[str, int] = {}

    # --- what is run ------------------------------------------------------------------------------------------------

    def settings_of(self, one: Point | str, seed: int) -> Settings:
        """The settings of a point or strategy."""
        strategy, alpha = ("sff", one.given) if isinstance(one, Point) else (one, None)
        if strategy == ZERO_SHOT:
            seed = 0
        return resolve_settings(self.models.pristine(), strategy=strategy, alpha=alpha, seed=seed, **self.options)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What all runs share: a folder holds one such sweep, whatever its alphas and seeds."""
        described = describe(self.models.pristine(), self.data, self.settings_of(ZERO_SHOT, 0))
        shared = {key: value for key, value in described["settings"].items() if key not in OF_A_RUN}
        return {**described, "settings": {**shared, "lp_epochs": self.options["lp_epochs"], "kind": "sweep"}}

    @property
    def told(self) -> dict[str, Any]:
        """The description with alphas and seeds."""
        own = {
            "points": [{"alpha": point.alpha, "groups": point.groups} for point in self.points],
            "seeds": self.seeds,
            "baselines": self.baselines,
            "halving": self.halving,
        }
        return {**self.description, "settings": {**self.description["settings"], **own}}

    def run(self, stop: StopRequest, progress: Progress) -> CompareResult:
        """Everything that is not finished yet."""
        self.stop, self.progress = stop, progress
        self.total = 1 + len(self.baselines) * len(self.seeds) + self._planned()
        (self.folder / "metrics.json").unlink(missing_ok=True)  # of fewer points
        # Written anew by a resumed sweep: what is in it can be told from the finished runs.
        self.log = RunLog(self.folder / "log.jsonl")
        try:
            self.log.write("start", **self.told)
            result = self._one(ZERO_SHOT, 0)
            self.zero_shot, self.of_zero_shot = result.zero_shot, result.windows
            self.log.write("zero_shot", **self.zero_shot)
            chosen = self._choose()
            for strategy in self.baselines:
                for seed in self.seeds:
                    self._one(strategy, seed)
            metrics, runs = self._test(chosen)
            model = self._ship(metrics)
            self.log.write("end", verdict=metrics["verdict"])
            self.log.sync()
            write_json(self.folder / "metrics.json", metrics)
            for path in (self.folder / "runs").glob(f"*/{WEIGHTS}"):
                path.unlink()
        finally:
            self.log.close()
        return _result(metrics, runs, model)

    def finished(self, metrics: dict[str, Any]) -> CompareResult:
        """The result of a sweep that has its ``metrics.json``."""
        by_label = {point.label: point for point in self.points}
        chosen = by_label[metrics["sweep"]["chosen"]]
        runs = []
        for one in (chosen, *self.baselines):
            for seed in self.seeds:
                folder, settings = self._folder(one, seed), self.settings_of(one, seed)
                result = finished_run(folder, identity_of(describe(self.models.pristine(), self.data, settings)))
                self._with_test(result, folder)
                runs.append(result)
        return _result(metrics, runs, self.folder / "model")

    def _planned(self) -> int:
        """Runs of points, those that halving will make."""
        before, total = 0, 0
        for points, seeds in self.steps:
            total += points * (seeds - before)
            before = seeds
        return total

    def _folder(self, one: Point | str, seed: int) -> Path:
        return self.folder / directory_of(self.settings_of(one, seed))

    def _one(self, one: Point | str, seed: int) -> RunResult:
        """One run, made or found finished; only the zero-shot model is tested."""
        self.stop.check()
        settings = self.settings_of(one, seed)
        tunes = settings.strategy != ZERO_SHOT
        name = one.label if isinstance(one, Point) else one
        what = f"alpha {name}, seed {seed}" if isinstance(one, Point) else f"{name}, seed {seed}" if tunes else name
        result = run_one(
            self.models.pristine(),
            self.data,
            settings,
            self.folder / directory_of(settings),
            stop=self.stop,
            progress=self.progress,
            plan=self.plan,
            zero_shot=self.zero_shot if tunes else None,
            label=f"{what} ({len(self.results) + 1} of {self.total})",
            keep_model=False,
            keep_state=False,
            test=not tunes,
            keep_weights=tunes,
        )
        if tunes:
            self.models.spend()
            self.log.write("run", directory=directory_of(settings), **summary_of(result))
        self.results[name, seed] = result
        return result

    # --- choosing ---------------------------------------------------------------------------------------------------

    def _choose(self) -> Point:
        """The point with the lowest mean validation MSE, after as many steps as there are."""
        left, best = self.points, None
        for step, (_, count) in enumerate(self.steps):
            last = step + 1 == len(self.steps)
            for point in left:
                for seed in self.seeds[:count]:
                    if (point.label, seed) not in self.results:
                        self._one(point, seed)
                if last:
                    # Only the weights of the best one so far are needed any more.
                    best, beaten = (point, best) if best is None or self._score(point) < self._score(best) else (best, point)
                    self._forget(beaten)
            if not last:
                ranked = sorted(left, key=self._score)
                keep = ranked[: self.steps[step + 1][0]]
                for point in left:
                    if point not in keep:
                        self.left_out[point.label] = step + 1
                        self._forget(point)
                left = [point for point in left if point in keep]
                self.log.write("step", seeds=count, left=[point.label for point in left])
        self.log.write("chosen", point=best.label, val_mse=self._score(best))
        return best

    def _score(self, point: Point) -> float:
        values = self._validated(point)
        return math.inf if None in values else mean_and_std(values)[0]

    def _validated(self, point: Point) -> list[float | None]:
        return [self.results[point.label, seed].val_mse for seed in self.seeds if (point.label, seed) in self.results]

    def _forget(self, point: Point | None) -> None:
        """Remove the best weights of a point that will not be tested."""
        if point is not None:
            for seed in self.seeds:
                (self._folder(point, seed) / WEIGHTS).unlink(missing_ok=True)

    # --- testing ----------------------------------------------------------------------------------------------------

    def _test(self, chosen: Point) -> tuple[dict[str, Any], list[RunResult]]:
        """Test the chosen point and the baselines, and make ``metrics.json``."""
        runs, entries = [], []
        for one in (chosen, *self.baselines):
            for seed in self.seeds:
                self.stop.check()
                result = self._tested(one, seed)
                runs.append(result)
                entries.append({**result.to_json(), "directory": directory_of(self.settings_of(one, seed))})
        windows = [result.windows for result in runs]
        metrics = build_metrics(self.told, self.zero_shot, entries, windows, self.of_zero_shot)
        metrics["sweep"] = finite(self._table(chosen))
        metrics["verdict"] = f"{self._choice_text(chosen)} {metrics['verdict']}"
        return metrics, runs

    def _tested(self, one: Point | str, seed: int) -> RunResult:
        name = one.label if isinstance(one, Point) else one
        folder, settings = self._folder(one, seed), self.settings_of(one, seed)
        if not (folder / TESTED).exists():
            with determinism(settings.deterministic), seeded(settings.seed, settings.device):
                adapter = self._load(one, seed)
                evaluation = functools.partial(
                    measure,
                    adapter,
                    self.data,
                    batch_size=settings.eval_batch_size,
                    device=settings.device,
                    stop=self.stop,
                    progress=self.progress,
                )
                self.progress.start(len(self.data.test), f"test {name}, seed {seed}")
                try:
                    test, windows = measure_test(evaluation, self.data)
                finally:
                    self.progress.close()
            self.models.spend()
            if windows is not None:
                windows.save(folder / FOLDER / "test.safetensors")
            write_json(folder / TESTED, finite(test))
        result = self.results[name, seed]
        self._with_test(result, folder)
        return result

    def _with_test(self, result: RunResult, folder: Path) -> None:
        """Add what was tested to a run that had only been validated."""
        test = read_json(folder / TESTED, error=CheckpointError)
        result.test_mse, result.test_mae = test["mse"], test["mae"]
        result.metrics = {**result.metrics, "test": test}
        result.windows = load_windows(folder, "test")

    def _load(self, one: Point | str, seed: int) -> Any:
        """The model with the best weights of a run; a run whose weights are gone is made again."""
        name = one.label if isinstance(one, Point) else one
        folder, settings = self._folder(one, seed), self.settings_of(one, seed)
        if not (folder / WEIGHTS).exists():
            (folder / "metrics.json").unlink(missing_ok=True)
            self._one(one, seed)
        adapter = self.models.pristine()
        self.models.spend()
        adapter.model.to(settings.device, PRECISIONS[settings.precision])
        load_weights(adapter.model, iterate_safetensors(folder / WEIGHTS))
        smooth = self.results[name, seed].smooth
        remember_smoothing(adapter.model, [] if smooth is None else [smooth])
        return adapter

    def _ship(self, metrics: Mapping[str, Any]) -> Path:
        """Put the model that validation chooses into the sweep's own folder."""
        choice = choose(metrics["zero_shot"], metrics["runs"])
        target = self.folder / "model"
        if choice.ship:
            one = next(point for point in (*self.points, *self.baselines) if _is(point, choice.best))
            adapter = self._load(one, choice.best["seed"])
        else:
            adapter = self.models.pristine()
        adapter.save(target, overwrite=True)
        self.models.spend()
        return target

    # --- telling ----------------------------------------------------------------------------------------------------

    def _table(self, chosen: Point) -> dict[str, Any]:
        """``sweep`` of ``metrics.json``: every point, and the baselines, by their validation MSE."""
        points = []
        for point in self.points:
            made = [seed for seed in self.seeds if (point.label, seed) in self.results]
            values = self._validated(point)
            points.append(
                {
                    "alpha": point.alpha,
                    "groups": point.groups,
                    "label": point.label,
                    "seeds": made,
                    "val_mse": values,
                    **_interval(values),
                    "left_out_after": self.left_out.get(point.label),
                    "chosen": point is chosen,
                    "seconds": math.fsum(self.results[point.label, seed].seconds for seed in made),
                    "directories": [directory_of(self.settings_of(point, seed)) for seed in made],
                }
            )
        lines = []
        for strategy in self.baselines:
            values = [self.results[strategy, seed].val_mse for seed in self.seeds]
            lines.append({"strategy": strategy, "val_mse": values, **_interval(values)})
        return {
            "chosen": chosen.label,
            "by": "val_mse",
            "seeds": self.seeds,
            "halving": [{"points": points_left, "seeds": count} for points_left, count in self.steps] if self.halving else None,
            "points": points,
            "baselines": lines,
        }

    def _choice_text(self, chosen: Point) -> str:
        """One sentence about the choice."""
        score = self._score(chosen)
        if not math.isfinite(score):
            return f"None of {len(self.points)} alphas reached a finite validation MSE."
        many = f"of {len(self.points)} alphas" if len(self.points) > 1 else "the only alpha"
        text = f"Alpha {chosen.label}, {many}, has the lowest validation MSE ({score:.4f}, mean over {len(self.seeds)} seeds)"
        if len(self.seeds) == 1:
            text = text.replace(", mean over 1 seeds", ", one seed")
        tried = sorted({point.alpha for point in self.points})
        if len(tried) > 1 and chosen.alpha == tried[-1] < 1:
            return f"{text}; it is the largest tried, so try larger ones."
        if len(tried) > 1 and chosen.alpha == tried[0] > 0:
            return f"{text}; it is the smallest tried, so try smaller ones."
        return f"{text}."


def _is(one: Point | str, run: Mapping[str, Any]) -> bool:
    """Whether a run is one of a point or strategy."""
    if isinstance(one, Point):
        return run["strategy"] == "sff" and run["alpha"] == one.given
    return run["strategy"] == one


def _interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean over seeds with its 95 % Student t interval; nothing where a seed has no finite value."""
    if not values or None in values:
        return {"val_mse_mean": None, "ci_low": None, "ci_high": None}
    mean, low, high = paired_interval(values)
    return {"val_mse_mean": mean, "ci_low": low, "ci_high": high}


def _result(metrics: dict[str, Any], runs: list[RunResult], model: Path) -> CompareResult:
    choice = choose(metrics["zero_shot"], metrics["runs"])
    for run, entry in zip(runs, metrics["runs"], strict=True):
        run.verdict = metrics["verdict"]
        run.model_dir = model if choice.ship and entry is choice.best else None
    return CompareResult(
        zero_shot=metrics["zero_shot"],
        runs=runs,
        summary=metrics["summary"],
        comparisons=metrics["comparisons"],
        verdict=metrics["verdict"],
        metrics=metrics,
        model_dir=model,
    )
