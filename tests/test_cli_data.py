"""``--id-column``, ``--date-column`` and ``--columns``: tables whose names and contents do not tell, on every command."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from sff_fast.adapters import tiny
from sff_fast.cli import main
from sff_fast.cli.app import cli
from sff_fast.data import ForecastData, read_table
from sff_fast.training import evaluate

MODEL = ("--family", "timer", "--tiny", "--context-length", "96", "--prediction-length", "24", "--device", "cpu")
NAMED = ("--id-column", "place", "--date-column", "when", "--columns", "load")
DAYS = np.datetime64("2022-01-01") + np.arange(700)
LOADS = {"7": np.sin(np.arange(700) / 9), "12": np.cos(np.arange(700) / 5)}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Two series with numbers for names under a column name that says nothing, by time, with a column that is not wanted."""
    rows = [f"{place},{day},{place}.5,{values[i]:.17g}" for i, day in enumerate(DAYS) for place, values in LOADS.items()]
    path = tmp_path / "long.csv"
    path.write_text("\n".join(["place,when,altitude,load", *rows]) + "\n")
    return path


def test_a_long_file_gives_each_series_a_channel_and_the_errors_of_the_same_wide_table(long: Path, capsys) -> None:
    assert main(["evaluate", *MODEL, "--data", str(long), *NAMED, "--json", "--quiet"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["data"]["columns"] == ["12", "7"]
    assert "its 1400 rows belong to 2 series by column 'place'" in shown["data"]["notes"][0]
    wide = read_table(np.stack([LOADS["12"], LOADS["7"]], axis=1))
    expected = evaluate(tiny("timer"), ForecastData(wide, "0.7,0.1,0.2", 96, 24))
    assert shown["metrics"]["mse"] == expected["mse"]
    assert shown["metrics"]["mae_per_channel"] == expected["mae_per_channel"]


def test_without_the_options_the_same_file_is_refused_in_one_line(long: Path, capsys) -> None:
    assert main(["evaluate", *MODEL, "--data", str(long), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "line 3, column 'when': the time stamp 2022-01-01 00:00 occurs twice, and 699 more values" in line
    assert line.endswith("or name the column that tells the series of a long table (id_column, --id-column)")


def test_a_model_is_tuned_on_a_long_parquet_file_and_forecasts_every_series(long: Path, tmp_path: Path, capsys) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path, out = tmp_path / "long.parquet", tmp_path / "run"
    pandas.read_csv(long, parse_dates=["when"]).to_parquet(path)
    options = ("--data", str(path), *NAMED, "--stride", "24")
    tuning = ("--strategy", "ff", "--epochs", "1", "--max-steps", "2", "--quiet", "--out", str(out))
    assert main(["finetune", *MODEL, *options, *tuning]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data"]["columns"] == ["12", "7"]
    assert len(metrics["runs"][0]["metrics"]["test"]["mse_per_channel"]) == 2
    report = (out / "report.html").read_text()
    assert "--id-column place" in report
    capsys.readouterr()
    model = ("--family", "timer", "--checkpoint", str(out / "model"), *MODEL[3:])
    assert main(["forecast", *model, "--data", str(path), *NAMED]) == 0
    header, *lines = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[:3] == ["date", "12", "7"]
    assert len(lines) == 24
    assert lines[0][0] == f"{DAYS[-1] + 1} 00:00"


def test_columns_choose_and_order_the_channels_of_a_wide_table(tmp_path: Path, capsys) -> None:
    path = tmp_path / "wide.csv"
    rows = [f"{day},{np.sin(i / 9):.6f},{i % 5},{np.cos(i / 7):.6f}" for i, day in enumerate(DAYS)]
    path.write_text("\n".join(['read on,a,b,"c, in kW"', *rows]) + "\n")
    assert main(["evaluate", *MODEL, "--data", str(path), "--columns", '"c, in kW",a', "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["columns"] == ["c, in kW", "a"]


def test_names_of_series_that_look_like_dates_are_no_time_stamps_where_the_id_column_is_named(tmp_path: Path) -> None:
    rows = [f"{cohort},{day},{i % 5}" for cohort in ("2020-01-01", "2021-01-01") for i, day in enumerate(DAYS)]
    path = tmp_path / "cohorts.csv"
    path.write_text("\n".join(["cohort,read on,users", *rows]) + "\n")
    table = read_table(path, id_column="cohort")
    assert table.columns == ["2020-01-01", "2021-01-01"]
    np.testing.assert_array_equal(table.timestamps.astype("datetime64[D]"), DAYS)


def test_every_command_that_reads_a_table_can_be_told_its_columns() -> None:
    options = {name: {option for p in command.params for option in p.opts} for name, command in cli.commands.items()}
    reading = {name for name, has in options.items() if "--data" in has}
    assert reading == {"finetune", "compare", "sweep", "evaluate", "forecast", "landscape"}
    assert all({"--id-column", "--date-column", "--columns", "--fill", "--drop"} <= options[name] for name in reading)


REFUSED = {
    ("--id-column", "town"): "has no column 'town' of series; its columns are 'place', 'when', 'altitude', 'load'",
    ("--date-column", "town"): "has no column 'town'; its columns are 'place', 'when', 'altitude', 'load'",
    ("--columns", "load,town"): "has no column 'town'",
    ("--columns", "load,load"): "load is listed twice",
    ("--columns", "load,,when"): "expected a comma-separated list without gaps, got 'load,,when'",
    ("--columns", '"load'): "expected a comma-separated list, got '\"load'",
    ("--columns", ""): "expected a comma-separated list without gaps, got ''",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_columns_that_are_not_there_are_one_line_and_exit_code_2(options: tuple[str, str], long: Path, capsys) -> None:
    assert main(["evaluate", *MODEL, "--data", str(long), *options, "--quiet"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("Try "))
    assert REFUSED[options] in line


@pytest.mark.parametrize("option", ["--id-column", "--date-column", "--columns"])
def test_a_file_of_the_ucr_archive_has_no_columns_to_name(option: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "002_UCR_Anomaly_spike_700_901_910.txt"
    path.write_text("\n".join(f"{np.sin(i / 8):.6f}" for i in range(1200)) + "\n")
    task = ("--family", "timer", "--tiny", "--task", "anomaly", "--context-length", "288", "--quiet")
    assert main(["evaluate", *task, "--data", str(path), option, "column_1"]) == 2
    assert f"{option} means nothing to --task anomaly: leave it out" in capsys.readouterr().err
