"""The commands and the Python code in docs/tasks.md and docs/data.md run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest

import sff_fast
from sff_fast.cli import exit_codes, main
from sff_fast.demo.shipped import weather_path

DOCS = Path(__file__).resolve().parent.parent / "docs"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(weather_path(), tmp_path / "weather.csv.gz")
    waves = np.sin(np.arange(5000) / 20) + 0.01 * np.cos(np.arange(5000) / 7)
    (tmp_path / "001_UCR_Anomaly_waves_2000_3001_3050.txt").write_text("\n".join(map(repr, waves.tolist())) + "\n")
    hours = np.datetime64("2024-01-01T00:00") + np.arange(1000) * np.timedelta64(1, "h")
    lines = [f"{stamp},{np.sin(i / 9):.6f},{np.cos(i / 5):.6f}" for i, stamp in enumerate(hours)]
    (tmp_path / "wide.csv").write_text("\n".join(["date,a,b", *lines]) + "\n")
    (tmp_path / "gaps.csv").write_text("\n".join(["date,a,b", *lines[:500], *lines[502:]]) + "\n")
    fields = [line.split(",") for line in lines]
    long = [f"{name},{field[0]},{field[column]}" for column, name in ((1, "north"), (2, "south")) for field in fields]
    (tmp_path / "long.csv").write_text("\n".join(["city,time,load", *long]) + "\n")
    days = np.datetime64("2022-01-01") + np.arange(1000)
    rows = [(f"{day}", shop, np.sin(i / 9 + shop), i % 7 + 0.5) for shop in (101, 102, 103) for i, day in enumerate(days)]
    shops = pandas.DataFrame(rows, columns=["day", "shop", "sales", "visitors"])
    shops.to_parquet(tmp_path / "shops.parquet")
    return tmp_path


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


COMMANDS = [
    (page, command.strip())
    for page in ("tasks.md", "data.md")
    for block in blocks(page, "")
    for command in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_the_page_runs(page: str, command: str, folder: Path, capsys) -> None:
    program, *arguments = shlex.split(command)
    assert program == "sff-fast"
    code = main([*arguments, "--quiet"])
    written = capsys.readouterr()
    assert code == 0, written.err
    assert "MSE" in written.out
    if "--out" in arguments:
        out = folder / arguments[arguments.index("--out") + 1]
        picture = out / f"{arguments[arguments.index('--task') + 1]}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert {"metrics.json", "report.html", "model"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("code", blocks("tasks.md", "python"))
def test_the_python_code_of_the_page_runs(code: str, folder: Path) -> None:
    names = {"sff_fast": sff_fast}
    exec(code, names)
    assert np.isfinite(names["result"].test_mse)


def test_the_pages_have_the_commands() -> None:
    assert len(COMMANDS) == 7


def test_every_exit_code_is_in_the_one_table_and_the_faults_name_no_other() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper()}
    table = (DOCS / "cli.md").read_text().partition("## Exit codes")[2]
    assert sorted(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) == sorted(codes)
    faults = (DOCS / "reliability.md").read_text().partition("## What goes wrong")[2]
    rows = [line.split("|")[2] for line in faults.splitlines() if line.startswith("|")][2:]
    killed = {137}  # the shell's word for a process that could say nothing
    assert {int(code) for row in rows for code in re.findall(r"\d+", row)} <= codes | killed
    assert len(rows) > 10
