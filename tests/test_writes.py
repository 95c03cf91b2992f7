"""Commands write below ``--out`` alone: every change of a file is watched, those of other packages too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import LENGTHS, good_columns, write_csv

from sff_fast.adapters import tiny

ROOT = Path(__file__).resolve().parents[1]
HARMLESS = ("/dev/null", "/dev/tty", "/proc/self/")
"""Devices and settings of the process itself, which hold nothing afterwards."""
OF_OTHERS = (
    r"temporary/[a-z0-9_]{8}",  # Python tries out whether it may write into TMPDIR
    r"temporary/torchinductor_\w+",  # an empty folder of torch
    r"home/matplotlib(/fontlist-v[\w.]+\.json(\.matplotlib-lock)?)?",  # which fonts there are, of matplotlib
)
"""What other packages keep for themselves, below the folder of the test; SECURITY.md names it."""
TRAINING = ("--epochs", "1", "--max-steps", "2", "--stride", "24", "--threads", "1", "--device", "cpu", "--quiet")


def world(root: Path) -> dict[str, Path]:
    """A home, a folder for temporaries, a working folder, data and a checkpoint, all for one command alone."""
    places = {name: root / name for name in ("home", "temporary", "work", "given")}
    for place in places.values():
        place.mkdir()
    write_csv(places["given"] / "weather.csv", good_columns())
    tiny("timer").save(places["given"] / "timer")
    return places


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and the time of its last change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def changed(root: Path, places: dict[str, Path], *command: object) -> tuple[set[str], set[str]]:
    """What a command changed: as the interpreter announced it, and as the folders show it."""
    log, before = root / "log", listing(root)
    home = {name: str(places["home"]) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME")}
    left_out = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {**home, "TMPDIR": str(places["temporary"]), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, str(ROOT / "tests/writes.py"), str(log), *map(str, command)]
    done = subprocess.run(words, cwd=places["work"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    announced = {tuple(json.loads(line))[1] for line in log.read_text().splitlines()}
    announced = {path for path in announced if not path.startswith(HARMLESS)}
    after = listing(root)
    seen = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} - {str(log)}
    return announced, seen


def outside(paths: set[str], root: Path, out: Path) -> list[str]:
    """The paths that are neither ``out``, nor below it, nor a temporary beside it that takes its place, nor of others."""
    beside, others = f"{out.parent}/.{out.name}.", re.compile(f"{re.escape(str(root))}/({'|'.join(OF_OTHERS)})")
    return sorted(
        path for path in paths if path != str(out) and not path.startswith((f"{out}/", beside)) and not others.fullmatch(path)
    )


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("finetune", TRAINING),
        pytest.param("compare", (*TRAINING, "--strategies", "ff,sff", "--seeds", "1"), marks=pytest.mark.slow),
        pytest.param("sweep", (*TRAINING, "--alphas", "0.5,0.9", "--seeds", "1", "--baselines", "ff"), marks=pytest.mark.slow),
        pytest.param(
            "landscape", ("--grid", "5", "--probes", "1", "--windows", "4", "--threads", "1", "--quiet"), marks=pytest.mark.slow
        ),
        pytest.param("forecast", ("--threads", "1"), marks=pytest.mark.slow),
        ("smooth", ()),
    ],
)
def test_a_command_changes_nothing_outside_of_its_output(tmp_path, command, options):
    places = world(tmp_path)
    out = tmp_path / "given to --out" / "run"
    out.parent.mkdir()
    timer, data = places["given"] / "timer", places["given"] / "weather.csv"
    if command == "smooth":
        words = [command, timer, out, "--family", "timer"]
    else:
        words = [command, "--family", "timer", "--checkpoint", timer, "--data", data, *LENGTHS, *options, "--out", out]
    announced, seen = changed(tmp_path, places, *words)
    assert outside(announced, tmp_path, out) == []
    folders = {str(out.parent), str(tmp_path / "home"), str(tmp_path / "temporary")}
    assert outside(seen - folders, tmp_path, out) == []
    assert len([path for path in announced if out.name in path]) > (1 if command == "forecast" else 3)


INTRUDER = """
import os, shutil, torch

def build():
    for name in ("a", "b", "c"):
        open(name, "w").close()
    os.rename("a", os.path.join(os.environ["HOME"], "moved"))
    os.remove("b")
    os.makedirs("d/e")
    shutil.rmtree("d")
    fd = os.open(".", os.O_RDONLY)
    os.unlink("c", dir_fd=fd)
    os.symlink("nowhere", os.path.join(os.environ["TMPDIR"], "link"))
    return torch.nn.Linear(2, 2)
"""


def test_what_is_changed_elsewhere_is_noticed(tmp_path):
    """The negative control: a constructor of the user's own, which is trusted, changes files wherever it likes."""
    places = world(tmp_path)
    (places["work"] / "intruder.py").write_text(INTRUDER)
    out = tmp_path / "plan.json"
    announced, seen = changed(tmp_path, places, "plan", "--factory", "intruder:build", "--save", out)
    work = places["work"]
    expected = {work / name for name in ("a", "b", "c", "d", "d/e")} | {places["home"] / "moved", places["temporary"] / "link"}
    assert set(map(str, expected)) <= set(outside(announced, tmp_path, out))
    assert {str(places["home"] / "moved"), str(places["temporary"] / "link")} <= set(outside(seen, tmp_path, out))
