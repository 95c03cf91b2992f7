"""The command line: what each command gives, and what bad input gives."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from sff_fast.cli import main
from sff_fast.cli import options as cli_options
from sff_fast.cli.app import cli
from sff_fast.cli.progress import BarProgress, LineProgress, describe, make_progress
from sff_fast.cli.types import Alpha, Integer, Names, Number, Numbers, Seeds
from sff_fast.training.output import WRITTEN

ROOT = Path(__file__).resolve().parents[1]
ROWS = 900
MODEL = ("--family", "timer", "--tiny")
LENGTHS = ("--context-length", "96", "--prediction-length", "24")
QUICK = ("--epochs", "1", "--max-steps", "2", "--stride", "24", "--threads", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_csv(path: Path, columns: dict[str, list], rows: int = ROWS) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values[:rows] for values in columns.values()), strict=True))
    return path


def good_columns() -> dict[str, list]:
    steps = np.arange(ROWS)
    noise = np.random.default_rng(0).normal(size=(2, ROWS))
    stamps = np.datetime64("2020-01-01T00", "h") + steps
    return {
        "date": [str(stamp).replace("T", " ") + ":00" for stamp in stamps],
        "temp": (300 + 10 * np.sin(steps / 24 * 2 * np.pi) + noise[0]).tolist(),
        "humid": (60 + 5 * np.cos(steps / 24 * 2 * np.pi) + noise[1]).tolist(),
    }


@pytest.fixture
def data(tmp_path) -> Path:
    return write_csv(tmp_path / "weather.csv", good_columns())


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# --- the good way ------------------------------------------------------------


def test_finetune_writes_metrics_model_report_and_pictures(tmp_path, data, capsys):
    out = tmp_path / "out"
    assert run("finetune", *MODEL, "--data", data, *LENGTHS, *QUICK, "--out", out) == 0
    assert {path.name for path in out.iterdir()} >= {
        "metrics.json",
        "log.jsonl",
        "model",
        "state",
        "report.html",
        "comparison.png",
        "learning_curves.png",
        "forecasts.png",
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert [run["strategy"] for run in metrics["runs"]] == ["sff"]
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:3] == ["strategy", "alpha", "seed"]
    assert [line.split()[0] for line in lines[1:3]] == ["zero-shot", "SFF"]
    assert f"{metrics['zero_shot']['test_mse']:.4f}" in lines[1]
    assert f"{metrics['runs'][0]['test_mse']:.4f}" in lines[2]
    assert metrics["verdict"] in printed.out.replace("\n", " ")
    assert "sff: epoch 1" in printed.err
    page = (out / "report.html").read_text()
    assert "sff-fast finetune --family timer --tiny" in page
    assert "temp" in page
    assert "2020-" in page


def test_compare_measures_zero_shot_and_every_strategy_seed_and_alpha(tmp_path, data, capsys):
    options = ("--strategies", "tfs,SFF", "--seeds", "2", "--alphas", "0.5,0.9", "--json", "--quiet")
    assert run("compare", *MODEL, "--data", data, *LENGTHS, *QUICK, *options) == 0
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert printed.err == ""
    got = [(run["strategy"], run["alpha"], run["seed"]) for run in metrics["runs"]]
    assert sorted(got, key=str) == sorted(
        [("tfs", None, 0), ("tfs", None, 1)] + [("sff", alpha, seed) for alpha in (0.5, 0.9) for seed in (0, 1)],
        key=str,
    )
    assert metrics["zero_shot"]["test_mse"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weather.csv"]


def test_torchs_random_numbers_are_an_option_that_metrics_and_report_name(tmp_path, data, capsys):
    options = ("--strategies", "tfs,sff", "--rng", "torch", "--out", tmp_path / "out", "--quiet")
    assert run("compare", *MODEL, "--data", data, *LENGTHS, *QUICK, *options) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["rng"] == "torch"
    assert [(run["strategy"], run["smooth"]["rng"]) for run in metrics["runs"]] == [("tfs", "torch"), ("sff", "torch")]
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"setting: rng\s*</[^>]*>\s*<[^>]*>\s*torch", page)


def test_compare_with_out_writes_a_report_that_shows_every_strategy(tmp_path, data, capsys):
    out = tmp_path / "deep" / "out"
    options = ("--strategies", "ff,lp", "--out", out, "--quiet")
    assert run("compare", *MODEL, "--data", data, *LENGTHS, *QUICK, *options) == 0
    page = (out / "report.html").read_text()
    assert "FF seed 0 from" in page
    assert "LP seed 0 from" in page
    assert f"report: {out}/report.html" in capsys.readouterr().out
    assert (out / "model").is_dir()


def test_the_demo_runs_all_strategies_and_shows_what_it_measured(tmp_path, capsys, monkeypatch):
    from sff_fast.demo import settings

    monkeypatch.setattr(settings, "STRIDE", 400)
    monkeypatch.setattr(settings, "EPOCHS", 1)
    out = tmp_path / "demo"
    assert run("demo", "--out", out) == 0
    assert torch.get_num_threads() == 1
    metrics = json.loads((out / "metrics.json").read_text())
    assert [run["strategy"] for run in metrics["runs"]] == ["tfs", "ff", "sff"]
    assert {run["seed"] for run in metrics["runs"]} == {settings.SEED}
    assert metrics["zero_shot"]["test_mse"] > 0
    for name in ("report.html", "comparison.png", "learning_curves.png", "forecasts.png"):
        assert (out / name).stat().st_size > 10_000, name
    printed = capsys.readouterr().out
    assert metrics["verdict"] in printed
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == ["zero-shot", "TFS", "FF", "SFF"]


def test_a_finished_run_is_kept_and_replaced_only_when_asked(tmp_path, data, capsys):
    out = tmp_path / "out"
    command = ("finetune", *MODEL, "--data", data, *LENGTHS, *QUICK, "--out", out, "--quiet")
    assert run(*command, "--strategy", "zero-shot") == 0
    before = snapshot(out)
    assert run(*command) == 2
    assert re.search("holds a finished run.*--overwrite", capsys.readouterr().err)
    assert snapshot(out) == before
    assert run(*command, "--overwrite") == 0
    assert [run["strategy"] for run in json.loads((out / "metrics.json").read_text())["runs"]] == ["sff"]


def test_evaluate_prints_the_same_error_as_finetune_measures_for_zero_shot(tmp_path, data, capsys):
    shared = (*MODEL, "--data", data, *LENGTHS, "--stride", "24", "--threads", "1", "--quiet", "--json")
    assert run("evaluate", *shared) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert run("compare", *shared, "--strategies", "zero-shot") == 0
    compared = json.loads(capsys.readouterr().out)
    assert evaluated["metrics"]["mse"] == compared["zero_shot"]["test_mse"]
    assert evaluated["metrics"]["windows"] == evaluated["data"]["windows"]["test"]
    assert run("evaluate", *shared[:-1]) == 0
    assert f"MSE        {evaluated['metrics']['mse']:.4f}" in capsys.readouterr().out


def test_forecast_writes_csv_that_goes_on_where_the_table_ends(tmp_path, data, capsys):
    assert run("forecast", *MODEL, "--data", data, *LENGTHS, "--threads", "1") == 0
    table = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert table[0] == ["date", "temp", "humid"]
    first = np.datetime64("2020-01-01T00", "h") + ROWS
    assert [row[0] for row in table[1:]] == [str(first + i).replace("T", " ") + ":00" for i in range(24)]
    # A random model says little, but in the data's own units: temperatures in kelvin, humidity in percent.
    values = np.array([[float(value) for value in row[1:]] for row in table[1:]])
    assert (abs(values[:, 0] - 300) < 60).all()
    assert (abs(values[:, 1] - 60) < 30).all()


@pytest.mark.parametrize(
    ("family", "options"), [("chronos", ()), ("chronos-t5", ("--num-samples", "3")), ("sundial", ("--num-samples", "3"))]
)
def test_forecast_of_a_probabilistic_family_has_a_column_a_quantile(family, options, data, capsys):
    package = {"sundial": "sktime"}.get(family, "chronos")
    pytest.importorskip(package, reason=f"{package} is not installed: make models-env")
    command = ("forecast", "--family", family, "--tiny", "--data", data, *LENGTHS, "--threads", "1", *options)
    assert run(*command) == 0
    text = capsys.readouterr().out
    table = list(csv.reader(io.StringIO(text)))
    levels = [f"q0.{i}" for i in range(1, 10)]
    assert table[0] == ["date", "temp", "humid", *(f"{name}_{level}" for level in levels for name in ("temp", "humid"))]
    values = np.array([[float(value) for value in row[1:]] for row in table[1:]])
    assert values.shape == (24, 20)
    assert run(*command, "--seed", "1") == 0
    # Only sample paths depend on the seed.
    assert (capsys.readouterr().out == text) == (not options)
    if options:
        assert (np.diff(values[:, 2::2], axis=1) >= 0).all()


def test_forecast_standardises_with_the_train_part_of_a_split_where_asked(data, capsys, monkeypatch):
    from sff_fast import training

    seen = []
    library = training.forecast
    monkeypatch.setattr(training, "forecast", lambda *a, **k: seen.append(k["scaler"]) or library(*a, **k))
    command = ("forecast", *MODEL, "--data", data, *LENGTHS, "--threads", "1")
    assert run(*command) == 0
    assert run(*command, "--split", "0.5,0.25,0.25") == 0
    assert seen[0] is None
    temperatures = good_columns()["temp"]
    assert seen[1].mean[0] == pytest.approx(np.mean(temperatures[:450]), rel=1e-12)
    assert seen[1].mean[0] != pytest.approx(np.mean(temperatures), rel=1e-6)


@pytest.mark.parametrize(("split", "part"), [((), "the table"), (("--split", "0.5,0.25,0.25"), "the train part")])
def test_forecast_leaves_out_a_constant_channel_where_asked_as_training_does(split, part, tmp_path, capsys):
    command = ("forecast", *MODEL, "--data", with_constant(tmp_path), *LENGTHS, "--threads", "1", *split)
    assert run(*command) == 2
    assert re.search(f"column 'humid': constant in {part} .*--drop", capsys.readouterr().err)
    assert run(*command, "--drop") == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("date,temp\n")
    assert f"the channel 'humid' is constant in {part} and was left out" in streams.err


def test_forecast_replaces_a_file_only_when_asked(tmp_path, data, capsys):
    out = tmp_path / "forecast.csv"
    command = ("forecast", *MODEL, "--data", data, *LENGTHS, "--threads", "1", "--out", out)
    assert run(*command) == 0
    text = out.read_text()
    assert run(*command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*command, "--overwrite") == 0
    assert out.read_text() == text
    assert capsys.readouterr().out == ""


def test_plan_prints_a_row_a_parameter_and_saves(tmp_path, capsys):
    assert run("plan", *MODEL, "--save", tmp_path / "plan.json") == 0
    printed = capsys.readouterr().out
    from sff_fast.adapters import tiny
    from sff_fast.plan import InitPlan

    plan = tiny("timer").plan()
    for name in plan:
        assert re.search(rf"^ *{re.escape(name)} ", printed, re.MULTILINE), name
    assert InitPlan.load(tmp_path / "plan.json").hash == plan.hash


def test_plan_of_a_factory_in_the_current_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_models.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run("plan", "--factory", "my_models:build", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [parameter["name"] for parameter in printed["parameters"]] == ["weight", "bias"]
    assert printed["totals"] == {"uniform": {"tensors": 2, "elements": 8}}
    assert [draw["op"] for draw in printed["program"]["draws"]] == ["uniform_", "uniform_"]


def test_plan_says_why_a_parameter_is_not_elementwise_and_counts_all_kinds(tmp_path, monkeypatch, capsys):
    code = "import torch\nfrom torch import nn\ndef build():\n    m = nn.Linear(4, 4)\n"
    code += "    nn.init.orthogonal_(m.weight)\n    m.extra = nn.Parameter(torch.randn(3).exp())\n    return m\n"
    (tmp_path / "odd_models.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run("plan", "--factory", "odd_models:build") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "random values through exp" in printed
    assert "3 parameters, 23 elements; tensors (elements) opaque: 1 (3), orthogonal: 1 (16), uniform: 1 (4)" in printed


def test_help_lists_the_commands_that_work_and_no_others(capsys):
    assert run("--help") == 0
    listed = re.findall(r"^  ([a-z]+) {2,}", capsys.readouterr().out.split("Commands:")[1], re.MULTILINE)
    assert listed == [
        "demo",
        "doctor",
        "plan",
        "smooth",
        "finetune",
        "compare",
        "sweep",
        "evaluate",
        "forecast",
        "landscape",
        "bench",
    ]


def test_no_command_at_all_shows_the_help(capsys):
    assert run() == 0
    assert "Usage: sff-fast" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    from sff_fast.version import __version__

    assert run("--version") == 0
    assert capsys.readouterr().out == f"sff-fast {__version__}\n"


def test_the_modules_that_help_needs_import_no_torch():
    # The package's own __init__ is left out: what it imports is its business, and it is the same for every command.
    code = f"""
import sys, types
package = types.ModuleType("sff_fast")
package.__path__ = [{str(ROOT / "sff_fast")!r}]
sys.modules["sff_fast"] = package
import sff_fast.cli.app
print(*(name for name in ("torch", "numpy", "matplotlib", "pandas") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"


def test_options_list_what_the_library_has():
    from sff_fast.data.gaps import FILLS
    from sff_fast.optim import check_optimizer_name
    from sff_fast.report import theme
    from sff_fast.smooth import RNGS
    from sff_fast.training import STRATEGIES
    from sff_fast.training.config import PRECISIONS
    from sff_fast.training.schedules import SCHEDULES

    assert tuple(STRATEGIES) == cli_options.STRATEGIES
    assert tuple(PRECISIONS) == cli_options.PRECISIONS
    assert tuple(SCHEDULES) == cli_options.SCHEDULES
    assert cli_options.FILLS == FILLS
    assert cli_options.RNGS == RNGS
    for name in cli_options.OPTIMIZERS:
        check_optimizer_name(name)
    assert all(theme.style(name).meaning for name in STRATEGIES)


def test_every_option_of_every_command_has_a_help_text():
    for command in cli.commands.values():
        assert command.help
        assert command.short_help
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (command.name, option.name)


# --- bad input ------------------------------------------------------------


def without_numbers(tmp_path):
    columns = good_columns()
    return write_csv(tmp_path / "bad.csv", {"date": columns["date"], "city": ["Bergen"] * ROWS})


def with_nan(tmp_path):
    columns = good_columns()
    columns["humid"][41] = "nan"
    return write_csv(tmp_path / "bad.csv", columns)


def with_constant(tmp_path):
    return write_csv(tmp_path / "bad.csv", {**good_columns(), "humid": [7.0] * ROWS})


def too_short(tmp_path):
    return write_csv(tmp_path / "bad.csv", good_columns(), rows=100)


def escape_codes(tmp_path):
    return write_csv(tmp_path / "bad.csv", {"date": good_columns()["date"], "\x1b[2Jtemp": ["x"] * ROWS})


BAD_DATA = {
    "missing file": (lambda tmp_path: tmp_path / "absent.csv", r"absent\.csv.*does not exist"),
    "a folder": (lambda tmp_path: tmp_path, r"is a folder"),
    "no numeric column": (without_numbers, r"bad\.csv.*no numeric column"),
    "NaN in the data": (with_nan, r"bad\.csv.*line 43.*'humid'"),
    "constant channel": (with_constant, r"bad\.csv.*'humid'.*constant in the train part"),
    "shorter than context and horizon": (too_short, r"bad\.csv.*100"),
    "escape codes in a name": (escape_codes, r"bad\.csv"),
}


def check_refused(code: int, err: str, pattern: str) -> None:
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith("sff-fast: error: ")
    assert re.search(pattern, lines[0]), lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and re.fullmatch(r"Try 'sff-fast[ a-z]* --help'\.", lines[1])), err
    assert "\x1b" not in err


@pytest.mark.parametrize("command", ["finetune", "compare"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named_in_one_line_and_nothing_is_written(tmp_path, capsys, case, command):
    make, pattern = BAD_DATA[case]
    bad = make(tmp_path)
    before = snapshot(tmp_path)
    code = run(command, *MODEL, "--data", bad, *LENGTHS, *QUICK, "--out", tmp_path / "out")
    check_refused(code, capsys.readouterr().err, pattern)
    assert snapshot(tmp_path) == before


BAD_OPTIONS = {
    "unknown family": (("--family", "tiemr"), r"family 'tiemr'.*timer.*ttm"),
    "alpha above 1": (("--alpha", "1.5"), r"--alpha.*from 0 to 1, got 1\.5"),
    "alpha NaN": (("--alpha", "nan"), r"--alpha.*from 0 to 1, got nan"),
    "alpha of a pattern": (("--alpha", "head.*=1,*=2"), r"--alpha.*from 0 to 1, got 2"),
    "negative seed": (("--seed", "-1"), r"--seed.*2\*\*64 - 1"),
    "no epoch": (("--epochs", "0"), r"--epochs.*at least 1, got 0"),
    "lr 0": (("--lr", "0"), r"--lr.*above 0"),
    "lr infinite": (("--lr", "inf"), r"--lr.*above 0"),
    "train fraction": (("--train-fraction", "1.01"), r"--train-fraction.*up to 1"),
    "split": (("--split", "0.9,0.2,0.1"), r"split|shares"),
    "device": (("--device", "tpu"), r"device"),
    "precision": (("--precision", "fp8"), r"--precision"),
    "threads": (("--threads", "0"), r"--threads"),
    "rng": (("--rng", "numpy"), r"--rng.*philox"),
    "context not a multiple of the patch": (("--context-length", "100"), r"context_length.*96"),
    "unknown option": (("--epoch", "3"), r"--epoch"),
    "resume and overwrite": (("--resume", "--overwrite"), r"resume.*overwrite|overwrite.*resume"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_named_in_one_line_and_nothing_is_written(tmp_path, data, capsys, case):
    options, pattern = BAD_OPTIONS[case]
    before = snapshot(tmp_path)
    code = run("finetune", *MODEL, "--data", data, *LENGTHS, *QUICK, "--out", tmp_path / "out", *options)
    check_refused(code, capsys.readouterr().err, pattern)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--seed", "1", "--seeds", "2"), "--seed and --seeds exclude each other"),
        (("--seeds", "0"), "--seeds"),
        (("--seeds", "1,1"), "1 is listed twice"),
        (("--strategy", "ff", "--strategies", "sff"), "--strategy and --strategies exclude each other"),
        (("--strategies", "sff,warp"), r"unknown strategy 'warp'.*lp-ff"),
        (("--strategies", "sff,,ff"), "without gaps"),
        (("--alpha", "0.5", "--alphas", "0.5,0.7"), "--alpha and --alphas exclude each other"),
        (("--alphas", "0.5,1.7"), r"--alphas.*got 1\.7"),
        (("--strategies", "ff", "--alphas", "0.5"), "alphas"),
        (("--resume",), "need --out"),
    ],
)
def test_options_of_compare_that_contradict_are_refused(data, capsys, options, pattern):
    check_refused(run("compare", *MODEL, "--data", data, *LENGTHS, *QUICK, *options), capsys.readouterr().err, pattern)


def test_a_checkpoint_of_another_family_is_named_with_its_own(tmp_path, data, capsys, test_data):
    command = ("finetune", "--data", data, *LENGTHS, *QUICK, "--out", tmp_path / "out")
    before = snapshot(tmp_path)
    code = run(*command, "--family", "timer", "--checkpoint", test_data / "granite-ttm-512-96")
    check_refused(code, capsys.readouterr().err, r"granite-ttm-512-96.*'ttm'")
    assert snapshot(tmp_path) == before


def test_a_truncated_checkpoint_is_named(tmp_path, data, capsys, test_data):
    whole = (test_data / "granite-ttm-512-96" / "model.safetensors").read_bytes()
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "config.json").write_bytes((test_data / "granite-ttm-512-96" / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    before = snapshot(tmp_path)
    lengths = ("--context-length", "512", "--prediction-length", "96")
    command = ("finetune", "--data", data, *lengths, *QUICK, "--out", tmp_path / "out")
    check_refused(run(*command, "--family", "ttm", "--checkpoint", folder), capsys.readouterr().err, r"cut/model\.safetensors")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--family", "timer"), "--checkpoint PATH or --tiny"),
        (("--family", "timer", "--tiny", "--checkpoint", "x"), "--checkpoint PATH or --tiny"),
        (("--family", "timer", "--checkpoint", "absent"), "absent"),
        ((), "--family"),
    ],
)
def test_the_model_options_must_name_one_model(data, capsys, options, pattern):
    check_refused(run("evaluate", *options, "--data", data, *LENGTHS), capsys.readouterr().err, pattern)


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, data, capsys):
    before = snapshot(tmp_path)
    code = run("finetune", *MODEL, "--data", data, *LENGTHS, *QUICK, "--out", data / "out")
    check_refused(code, capsys.readouterr().err, r"output folder.*weather\.csv")
    assert snapshot(tmp_path) == before


def test_an_output_folder_without_permission_is_named(tmp_path, data, capsys, monkeypatch):
    # The tests may run as root, whom no mode bits stop.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    before = snapshot(tmp_path)
    code = run("finetune", *MODEL, "--data", data, *LENGTHS, *QUICK, "--out", tmp_path / "out")
    check_refused(code, capsys.readouterr().err, r"output folder.*permission")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("factory", "pattern"),
    [
        ("nowhere_to_be_found:build", "no module 'nowhere_to_be_found'"),
        ("json:absent", "'json' has no 'absent'"),
        ("json:__doc__", "not a function or class"),
        ("json", "MODULE:CALLABLE"),
    ],
)
def test_a_factory_that_cannot_be_found_is_named(capsys, factory, pattern):
    check_refused(run("plan", "--factory", factory), capsys.readouterr().err, pattern)


BROKEN_MODELS = """
import torch
def raises():
    raise KeyError("no such\\nlayer")
def needs(width, *more, depth=2):
    return torch.nn.Linear(width, depth)
def unwritten():
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.empty(3))
    return module
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(-1, 2)
"""


@pytest.mark.parametrize(
    ("factory", "pattern"),
    [
        ("broken_models:raises", r"--factory broken_models:raises raised KeyError: .*broken_models.py, line 4"),
        ("broken_models:Net", r"raised RuntimeError: .*negative dimension"),
        ("broken_models:needs", r"'needs' needs width, expected a function or class that is called without arguments"),
        ("broken_models:unwritten", r"the parameter 'w' of shape \(3,\) is uninitialised memory"),
        ("broken_syntax:build", r"importing 'broken_syntax' raised SyntaxError: .*broken_syntax.py, line 1"),
        ("broken_import:build", r"importing 'broken_import' raised ZeroDivisionError: .*broken_import.py, line 1"),
    ],
)
def test_a_constructor_that_fails_is_one_line_that_says_where(tmp_path, monkeypatch, capsys, factory, pattern):
    (tmp_path / "broken_models.py").write_text(BROKEN_MODELS)
    (tmp_path / "broken_syntax.py").write_text("def build(:\n")
    (tmp_path / "broken_import.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    check_refused(run("plan", "--factory", factory, "--save", tmp_path / "plan.json"), capsys.readouterr().err, pattern)
    assert not (tmp_path / "plan.json").exists()
    sys.modules.pop(factory.partition(":")[0], None)


def test_a_bug_of_the_tracer_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("sff_fast.tracing.build._draw_names", None)
    (tmp_path / "fine_models.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(TypeError):
        run("plan", "--factory", "fine_models:build")


def test_an_unknown_command_gets_one_line_and_a_hint(capsys):
    check_refused(run("finetuen"), capsys.readouterr().err, "finetuen.*finetune")


# --- errors, signals, missing packages ------------------------------------------------------------


@pytest.mark.parametrize("package", ["click", "rich"])
def test_a_missing_package_of_the_command_line_is_one_line_with_the_pip_command(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["doctor"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sff-fast: error: ")
    assert f"{package!r}" in err
    assert "pip install 'sff_fast[cli]'" in err
    assert err.count("\n") == 1


def test_a_missing_package_of_the_report_is_said_before_the_training(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = snapshot(tmp_path)
    code = run("finetune", *MODEL, "--data", data, *LENGTHS, *QUICK, "--out", tmp_path / "out")
    check_refused(code, capsys.readouterr().err, r"matplotlib.*pip install 'sff_fast\[cli\]'")
    assert snapshot(tmp_path) == before


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("sff_fast.doctor.examine", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("doctor")


def test_an_interrupt_ends_with_130_and_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sff_fast.doctor.examine", interrupted)
    assert run("doctor") == 130
    assert capsys.readouterr().err == "sff-fast: interrupted\n"


def test_warnings_and_log_lines_are_one_line_each(monkeypatch, capsys):
    import logging
    import warnings

    def warn(*_, **__):
        warnings.simplefilter("always")
        warnings.warn("first\nsecond \x1b[2J", stacklevel=1)
        logging.getLogger("sff_fast").warning("third")
        raise KeyboardInterrupt

    monkeypatch.setattr("sff_fast.doctor.examine", warn)
    run("doctor")
    assert capsys.readouterr().err.splitlines()[:2] == [
        r"sff-fast: warning: first second \x1b[2J",
        "sff-fast: warning: third",
    ]


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_ends_the_run_with_its_code_and_resume_finishes_it(tmp_path, data, number, code, word):
    out = tmp_path / "out"
    command = ["finetune", *MODEL, "--data", data, *LENGTHS, "--epochs", "12", "--patience", "12", "--lr", "1e-9"]
    command += ["--schedule", "constant", "--stride", "24", "--threads", "1", "--quiet", "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "sff_fast.cli", *map(str, command)],
        env=environment(),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "model").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err == f"sff-fast: {word}; the same command with --resume goes on from the last save\n"
    assert (out / "model").is_dir()
    assert not (out / "metrics.json").exists()
    assert not [path for path in out.rglob("*") if "tmp" in path.name]
    assert run(*command, "--resume") == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == list(range(13))
    assert (out / "report.html").exists()


# --- option types ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Seeds(), "3", (0, 1, 2)),
        (Seeds(), "7,", (7,)),
        (Seeds(), "5, 1", (5, 1)),
        (Seeds(), str(2**64 - 1) + ",0", (2**64 - 1, 0)),
        (Alpha(), "0.7", 0.7),
        (Alpha(), "1", 1.0),
        (Alpha(), "head.*=1, *=0.7", {"head.*": 1.0, "*": 0.7}),
        (Numbers(Number(0, 1)), ".5,1", (0.5, 1.0)),
        (Names("strategy", ("ff", "lp-ff")), "LP-FF,ff", ("lp-ff", "ff")),
        (Integer(1), "12", 12),
    ],
)
def test_option_values_are_read(kind, text, value):
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        (Seeds(), "0", "from 1 to 10000"),
        (Seeds(), "1.5", "an integer"),
        (Seeds(), f"{2**64},", r"2\*\*64 - 1"),
        (Alpha(), "-0.1", "from 0 to 1"),
        (Alpha(), "=0.5", "pattern=number"),
        (Alpha(), "a=0.5,a=0.6", "given twice"),
        (Alpha(), "a=0.5,b", "pattern=number"),
        (Numbers(Number(0, 1)), "0.5,0.5", "listed twice"),
        (Number(0, open_low=True), "0", "above 0"),
        (Integer(1), "1.0", "at least 1"),
    ],
)
def test_option_values_out_of_range_are_refused(kind, text, pattern):
    with pytest.raises(click.BadParameter, match=pattern):
        kind.convert(text, None, None)


# --- progress ------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_lines_elsewhere_and_nothing_when_quiet():
    assert isinstance(make_progress(False, Terminal()), BarProgress)
    assert isinstance(make_progress(False, io.StringIO()), LineProgress)
    assert make_progress(True, Terminal()) is None


@pytest.mark.parametrize("make", [LineProgress, BarProgress])
def test_progress_shows_each_epoch_with_its_losses(make):
    stream = Terminal()
    progress = make(stream)
    progress.start(100, "sff-seed0")
    progress.update(32, stage="train", epoch=1, loss=0.51, lr=3e-5)
    progress.epoch({"epoch": 1, "step": 4, "train_loss": 0.5, "val_mse": 0.4, "lr": 3e-5})
    progress.close()
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "sff-seed0: epoch 1, step 4, loss 0.5000, val MSE 0.4000, lr 3e-05" in text


def test_a_plain_line_tells_the_rate_and_the_time_that_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("sff_fast.cli.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.start(1000, "ff")
    now[0] += 10
    progress.update(200, stage="train", epoch=1, loss=0.5)
    assert stream.getvalue() == "ff: 1000 windows at most\n"
    now[0] += 30
    progress.update(200, stage="val")
    assert stream.getvalue().splitlines()[1] == "ff: validating, 10 windows/s, at most 1 min 00 s left"


def test_fields_that_are_absent_are_left_out_of_the_description():
    assert describe({"stage": "test"}) == "testing"
    assert describe({"epoch": 0, "train_loss": None, "val_mse": 0.25}) == "epoch 0, val MSE 0.2500"


# --- documentation ------------------------------------------------------------


def test_the_documentation_names_every_command_and_option():
    text = (ROOT / "docs" / "cli.md").read_text()
    for name, command in cli.commands.items():
        assert f"| `{name}` |" in text
        for option in command.params:
            named = option.opts[0] if isinstance(option, click.Option) else option.name.upper()
            assert named in text, (name, option.opts)


def test_the_documentation_names_no_option_that_does_not_exist():
    text = (ROOT / "docs" / "cli.md").read_text()
    known = {opt for command in cli.commands.values() for option in command.params for opt in option.opts}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= known | {"--help"}


# --- sweep -------------------------------------------------------------------


def test_a_sweep_prints_all_alphas_and_draws_them(tmp_path, data, capsys):
    out = tmp_path / "run"
    arguments = ("sweep", *MODEL, *LENGTHS, *QUICK, "--data", data, "--alphas", "0.5,0.9", "--seeds", "2", "--out", out)
    assert run(*arguments, "--alpha-groups", "head=1", "--baselines", "ff") == 0
    text = capsys.readouterr().out
    for words in ("95 % interval", "0.5, head=1", "0.9, head=1", "chosen", "zero-shot", "of 2 alphas, has the lowest", "report:"):
        assert words in text
    assert {"metrics.json", "model", "report.html", "sweep.png", "comparison.png"} <= {path.name for path in out.iterdir()}
    assert {path.name for path in out.iterdir()} <= set(WRITTEN)  # so that --overwrite removes it
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert ": sweep of alpha</title>" in (out / "report.html").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    assert [point["groups"] for point in metrics["sweep"]["points"]] == [{"head": 1.0}] * 2
    assert metrics["verdict"] in text
    before = snapshot(out / "runs")
    assert run(*arguments, "--alpha-groups", "head=1", "--baselines", "ff", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == metrics
    assert snapshot(out / "runs") == before


def test_a_sweep_of_imputation_chooses_and_tests_too(tmp_path, data):
    out = tmp_path / "run"
    arguments = (
        "sweep",
        *MODEL,
        *QUICK,
        "--data",
        data,
        "--task",
        "imputation",
        "--context-length",
        "192",
        "--alphas",
        "0.5,0.9",
    )
    assert run(*arguments, "--seed", "0", "--baselines", "ff", "--out", out, "--quiet") == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["sweep"]["points"]) == 2
    assert [entry["strategy"] for entry in metrics["runs"]] == ["sff", "ff"]
    assert metrics["comparisons"][0]["covers"] in ("windows", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alpha-groups", "head"), "expected a group and its alphas, such as head=0.5,0.9, got 'head'"),
        (("--alpha-groups", "head=2"), "expected a number from 0 to 1, got 2"),
        (("--alpha-groups", "head=1", "--alpha-groups", "head=0.5"), "--alpha-groups gives a group twice"),
        (("--alpha-groups", "tail=1"), "alpha group 'tail' is none of head, embedding, norms and matches no parameter"),
        (("--baselines", "sff"), "unknown strategy 'sff'"),
        (("--alphas", "0.5,0.5"), "0.5 is listed twice"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(tmp_path, data, capsys, arguments, message):
    out = tmp_path / "run"
    assert run("sweep", *MODEL, *LENGTHS, *QUICK, "--data", data, "--out", out, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_sweeps_own_lists_are_the_librarys():
    from sff_fast.cli.commands import sweep as command
    from sff_fast.training import STRATEGIES
    from sff_fast.training.sweep import ALPHAS, BASELINES

    assert command.ALPHAS == ALPHAS
    assert set(BASELINES) <= set(command.BASELINES)
    assert [*command.BASELINES] == [
        name for name, strategy in STRATEGIES.items() if name != "zero-shot" and not strategy.uses_alpha
    ]
