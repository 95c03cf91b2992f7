"""Does smoothing help? Strategies of fine-tuning on real data, each with the same search and the same budget of steps.

A setting is a pre-trained model, a data set and a share of its train windows. In each setting every strategy gets the same
number of validation trials (``TRIALS``): over learning rates, or first over its own option (alpha, a penalty's strength) and
then over learning rates. A trial takes seed 0 and never sees the test part. The configuration with the lowest validation error
then runs with ``SEEDS`` other seeds, all with the same number of optimizer steps, and only these runs are tested.

Run from the repository root; what has been measured already is not measured again, so it may be stopped and started at will::

    SFF_FAST_TEST_DATA=... python benchmarks/evidence.py --budget-minutes 60
    python benchmarks/evidence.py --doc        # docs/evidence.md from what there is

Points are appended to ``benchmarks/results/evidence.jsonl``, one JSON object a line. They come in an order that keeps the
strategies of a setting level: one seed of all of them after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import evidence_doc
import torch

import sff_fast
from sff_fast.data import AnomalyData, ForecastData, read_table
from sff_fast.demo import model_path, weather
from sff_fast.demo import settings as demo
from sff_fast.training import evaluate, finetune
from sff_fast.training.config import resolve_settings
from sff_fast.training.interrupts import StopRequest
from sff_fast.training.progress import Silent
from sff_fast.training.result import zero_shot_entry
from sff_fast.training.run import run_one

RESULTS = Path(__file__).parent / "results" / "evidence.jsonl"
TRIALS = 6
SEEDS = (1, 2, 3, 4, 5)
SEARCH_SEED = 0
LRS = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
OWN_LR, OTHER_LRS = 3e-4, (1e-4, 1e-3)
"""The learning rate that a strategy's own option is tried with, and those that follow with the best value of it."""
PROTOCOL = 2
"""Points of another protocol are kept, but not used: in the first one options were tried with a learning rate of 1e-3."""
UCR = ("135_UCR_Anomaly_InternalBleeding16_1200_4187_4199.txt", "136_UCR_Anomaly_InternalBleeding17_1600_3198_3309.txt")
DETECTION = ("rank", "segments", "quantile", "auc_roc", "auc_pr", "f1_best")
"""What a tested point of anomaly detection holds besides its errors."""
EVAL_STRIDE = 4
"""Every so many windows of the validation part count in the larger setting: neighbours share all but one of their values."""


@dataclasses.dataclass(frozen=True)
class Space:
    """What the trials of a strategy are spent on.

    Attributes:
        option: The strategy's own option, or None for one that has only the learning rate.
        values: Its values, tried with ``lr``.
        lr: The learning rate that they are tried with.
        lrs: The learning rates that are tried with the best value afterwards.
    """

    option: str | None = None
    values: tuple[float, ...] = ()
    lr: float = OWN_LR
    lrs: tuple[float, ...] = LRS

    def trial(self, number: int, before: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The options of a trial, given the points of the trials before it."""
        if number < len(self.values):
            return {self.option: self.values[number], "lr": self.lr}
        own = {} if self.option is None else {self.option: best(before[: len(self.values)])["options"][self.option]}
        return {**own, "lr": self.lrs[number - len(self.values)]}


def with_option(option: str, *values: float) -> Space:
    """Four values of an option, then two more learning rates."""
    return Space(option, values, lr=OWN_LR, lrs=OTHER_LRS)


CORE: dict[str, Space] = {
    "tfs": Space(),
    "ff": Space(),
    "lp": Space(),
    "lp-ff": Space(),
    "sff": with_option("alpha", 0.3, 0.5, 0.7, 0.9),
}
ABLATIONS: dict[str, Space] = {
    "noise": with_option("alpha", 0.3, 0.5, 0.7, 0.9),
    "shrink": with_option("alpha", 0.3, 0.5, 0.7, 0.9),
    "perturb": with_option("alpha", 0.3, 0.5, 0.7, 0.9),
    "l2-sp": with_option("penalty", 1e-3, 1e-2, 1e-1, 1.0),
    "l2-init": with_option("penalty", 1e-4, 1e-3, 1e-2, 1e-1),
    "mixout": with_option("mixout_p", 0.3, 0.5, 0.7, 0.9),
    "ema": with_option("ema_decay", 0.9, 0.99, 0.999, 1.0),
    "lora": with_option("lora_rank", 2, 4, 8, 16),
    "sam": with_option("sam_rho", 0.01, 0.02, 0.05, 0.1),
}
TIERS = {"core": CORE, "ablations": ABLATIONS}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, data and the budget of every run.

    Attributes:
        name: Of the points, such as ``"etth1-ttm-0.05"``.
        title: For people.
        fraction: Share of the train windows.
        steps: Optimizer steps of every run.
        batch_size: Windows in a step.
        make_adapter: Loads the pre-trained model.
        make_data: ``fraction -> data``, the validation part thinned out where it is large.
        turn: Whose turn it is: settings with a low number are measured first.
    """

    name: str
    title: str
    fraction: float
    steps: int
    batch_size: int
    make_adapter: Callable[[], Any]
    make_data: Callable[[float], ForecastData | AnomalyData]
    turn: int

    @functools.cached_property
    def data(self) -> ForecastData | AnomalyData:
        """The windows."""
        return self.make_data(self.fraction)

    def describe(self) -> dict[str, Any]:
        """What a point is measured under; points of other budgets are other points."""
        return {"protocol": PROTOCOL, "setting": self.name, "steps": self.steps, "batch_size": self.batch_size, "trials": TRIALS}


def _granite() -> Any:
    return sff_fast.load("ttm", _test_data() / "granite-ttm-512-96")


def _timer() -> Any:
    return sff_fast.load("timer", str(model_path()))


def _etth1(fraction: float) -> ForecastData:
    table = read_table(_test_data() / "ETTh1.csv")
    cut = functools.partial(ForecastData, table, "ett-hour", 512, 96, channel_independent=False)
    data = cut(train_fraction=fraction)
    data.val = cut(stride=EVAL_STRIDE).val
    return data


def _weather(fraction: float) -> ForecastData:
    return ForecastData(
        weather(), demo.SPLIT, demo.CONTEXT_LENGTH, demo.PREDICTION_LENGTH, stride=demo.STRIDE, train_fraction=fraction
    )


def _ucr(name: str) -> Callable[[float], AnomalyData]:
    """The windows of a series of the UCR anomaly archive, by its name."""
    return lambda fraction: AnomalyData.from_ucr(_test_data() / "ucr" / name, train_fraction=fraction)


def _test_data() -> Path:
    folder = os.environ.get("SFF_FAST_TEST_DATA")
    if not folder:
        raise SystemExit("SFF_FAST_TEST_DATA must name the folder with ETTh1.csv, granite-ttm-512-96 and ucr")
    return Path(folder)


SETTINGS: tuple[Setting, ...] = (
    *(
        Setting(f"weather-timer-{f:g}", f"small Timer, weather, {f:.0%} of the train windows", f, 300, 32, _timer, _weather, 0)
        for f in (0.05, 1.0)
    ),
    *(
        Setting(f"etth1-ttm-{f:g}", f"granite TTM, ETTh1, {f:.0%} of the train windows", f, 128, 16, _granite, _etth1, turn)
        for turn, f in enumerate((0.05, 0.25, 1.0), 1)
    ),
    *(
        Setting(f"ucr-{name[:3]}-timer", f"small Timer, UCR anomaly {name[:3]}", 1.0, 100, 16, _timer, _ucr(name), 0)
        for name in UCR
    ),
)


# ---------------------------------------------------------------------- points
def best(points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The point with the lowest validation error; those that diverged have none."""
    return min(points, key=lambda point: float("inf") if point["val_mse"] is None else point["val_mse"])


def read(path: Path) -> list[dict[str, Any]]:
    """The points so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def find(points: Sequence[Mapping[str, Any]], setting: Setting, strategy: str, stage: str) -> list[Mapping[str, Any]]:
    """The points of a strategy in a setting, in the order of their numbers."""
    wanted = {**setting.describe(), "strategy": strategy, "stage": stage}
    found = [point for point in points if all(point[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda point: point["number"])


def following(points: Sequence[Mapping[str, Any]], settings: Sequence[Setting], tiers: Sequence[str]) -> tuple | None:
    """Setting, strategy, stage, number and options of the point to measure next; None when all are there."""
    for tier, setting in sorted(itertools.product(tiers, settings), key=_turn):
        if not find(points, setting, "zero-shot", "final"):
            return setting, "zero-shot", "final", 0, {}
        for stage, numbers in (("search", range(TRIALS)), ("final", SEEDS)):
            for number, (strategy, space) in itertools.product(numbers, TIERS[tier].items()):
                if number in [point["number"] for point in find(points, setting, strategy, stage)]:
                    continue
                searched = find(points, setting, strategy, "search")
                options = space.trial(number, searched) if stage == "search" else best(searched)["options"]
                return setting, strategy, stage, number, options
    return None


def _turn(pair: tuple[str, Setting]) -> float:
    """When a group of strategies is measured in a setting: the plain ones before the others, what is cheap before what is not."""
    tier, setting = pair
    return setting.turn + 1.5 * list(TIERS).index(tier)


def measure(setting: Setting, strategy: str, stage: str, number: int, options: Mapping[str, float], zero_shot: dict) -> dict:
    """One point."""
    began = time.process_time()
    adapter = setting.make_adapter()
    point = {**setting.describe(), "strategy": strategy, "stage": stage, "number": number, "options": dict(options)}
    if strategy == "zero-shot":
        val, test = (evaluate(adapter, setting.data, part) for part in ("val", "test"))
        measured = {f"{part}_{kind}": errors[kind] for part, errors in (("val", val), ("test", test)) for kind in ("mse", "mae")}
        measured |= _detected(test)
        point["windows"] = {part: len(getattr(setting.data, part)) for part in ("train", "val", "test")}
    else:
        per_epoch = -(-len(setting.data.train) // setting.batch_size)
        arguments = {
            **_DEFAULTS,
            "strategy": strategy,
            "seed": SEARCH_SEED if stage == "search" else number,
            "epochs": max(2, -(-setting.steps // per_epoch)),
            "max_steps": setting.steps,
            "batch_size": setting.batch_size,
            "schedule": "cosine",
            "patience": None,
            **options,
        }
        settings = resolve_settings(adapter, **arguments)
        final = stage == "final"
        result = run_one(
            adapter, setting.data, settings, None, stop=StopRequest(), progress=Silent(), zero_shot=zero_shot, test=final
        )
        measured = {"val_mse": result.val_mse, "best_epoch": result.best_epoch}
        if final:
            measured |= {"test_mse": result.test_mse, "test_mae": result.test_mae, **_detected(result.metrics["test"])}
    return {**point, **measured, "cpu_seconds": round(time.process_time() - began, 1), **_machine()}


_RESOLVED = set(inspect.signature(resolve_settings).parameters) - {"adapter"}
_DEFAULTS = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in _RESOLVED}


def _detected(test: Mapping[str, Any]) -> dict[str, Any]:
    return {name: test[name] for name in DETECTION if name in test}


def _machine() -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "sff_fast": sff_fast.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _placeholder(point: Mapping[str, Any]) -> dict[str, Any]:
    """The zero-shot row that a run asks for, from the point that holds it."""
    errors = [{"mse": point[f"{part}_mse"], "mae": point[f"{part}_mae"]} for part in ("val", "test")]
    return zero_shot_entry(*errors, 0.0, 0)


def run(path: Path, settings: Sequence[Setting], tiers: Sequence[str], minutes: float | None) -> int:
    """Measure point after point until all are there or the time is over; returns how many."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    while end is None or time.monotonic() < end:
        points = read(path)
        wanted = following(points, settings, tiers)
        if wanted is None:
            break
        setting, strategy, stage, number, options = wanted
        zero_shot = find(points, setting, "zero-shot", "final")
        row = _placeholder(zero_shot[0]) if zero_shot else {}
        point = measure(setting, strategy, stage, number, options, row)
        with path.open("a") as file:
            file.write(json.dumps(point) + "\n")
        count += 1
        given = ", ".join(f"{name} {value:g}" for name, value in options.items())
        print(
            f"{setting.name} {strategy} {stage} {number} ({given}): validation {point['val_mse']}, test {point.get('test_mse')}, "
            f"{point['cpu_seconds']} s",
            flush=True,
        )
    return count


def main() -> None:
    """Measure, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-minutes", type=float, help="stop after this time; default: when all is measured")
    parser.add_argument("--settings", help="only these, by name and comma")
    parser.add_argument("--tiers", default=",".join(TIERS), help=f"of {', '.join(TIERS)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of the points")
    parser.add_argument("--doc", action="store_true", help="only write docs/evidence.md from the points")
    parser.add_argument("--list", action="store_true", help="only say how many points of each setting there are")
    given = parser.parse_args()
    names = None if given.settings is None else given.settings.split(",")
    chosen = [setting for setting in SETTINGS if names is None or setting.name in names]
    torch.set_num_threads(1)
    if given.list:
        for setting in chosen:
            print(setting.name, sum(point["setting"] == setting.name for point in read(given.results)))
        return
    if not given.doc:
        print(run(given.results, chosen, given.tiers.split(","), given.budget_minutes), "points measured")
    evidence_doc.write(read(given.results), SETTINGS, TIERS, TRIALS, SEEDS)


if __name__ == "__main__":
    main()
