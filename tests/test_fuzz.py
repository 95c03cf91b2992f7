"""Fuzzing: what was found once, the properties with a few examples, and in the slow suite a minute for each target."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "fuzz"), str(ROOT / "tools")]  # at the end: their modules have plain names

import parsers  # noqa: E402
import properties  # noqa: E402
from fuzz import CLANG  # noqa: E402

NAN_PLAN = {"schema": 1, "hash": "", "versions": {}, "notes": [], "parameters": [], "program": {"sha256": "", "draws": []}}
DRAW = {"op": "normal", "shape": [2], "strides": [1], "dtype": "float32", "arguments": [0, "NUMBER"], "targets": []}

# Found by atheris within minutes: the parser, its options, the file.
FOUND = {
    "an array whose header is half a Python literal": (
        "table",
        4,
        b"\x93NUMPY\x01\x00\x76\x00" + b" " * 109 + b"{'a': (" + b"\n\n",
    ),
    "a long table without any row left": (
        "table",
        0x80,
        b"when;id;v\n01/02/2020;*;1\n02/02/2020;y;nan\n02/22/2020;x;3\n01/02/2020;y;nan\n",
    ),
    "a number with a line break before it": ("options", 1, b"\n2"),
    "a save that lists no files": ("save", 1, b'{"format": 1, "content": {}}'),
    "a save whose files are a list": ("save", 1, b'{"format": 1, "files": ["a"], "content": {}}'),
    "a save that lists a file elsewhere": (
        "save",
        1,
        b'{"format": 1, "files": {"../a": {"bytes": 1, "sha256": ""}}, "content": {}}',
    ),
    "a plan whose program has an infinite number": (
        "plan",
        0,
        json.dumps({**NAN_PLAN, "program": {"sha256": "", "draws": [DRAW]}}).replace('"NUMBER"', "1e999").encode(),
    ),
    "a plan whose table has no name": ("plan", 0, json.dumps({**NAN_PLAN, "tables": {"file": "", "sha256": ""}}).encode()),
    "a plan whose table is no safetensors file": ("plan", 0, b"TABLE"),
    "a journal nested too deeply": (
        "journals",
        0,
        b"sff_fast journal 1\n" + (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ),
}


def number_of(parser: str) -> int:
    return [function.__name__ for function in parsers.PARSERS].index(parser)


@pytest.mark.parametrize("case", FOUND)
def test_what_fuzzing_found_is_refused_in_one_line(case, monkeypatch):
    parser, option, content = FOUND[case]
    monkeypatch.setattr(parsers, "LIMIT", 1 << 20)
    if content == b"TABLE":
        import hashlib

        parsers.written("plan.safetensors", b"no header")
        tables = {"file": "plan.safetensors", "sha256": hashlib.sha256(b"no header").hexdigest()}
        content = json.dumps({**NAN_PLAN, "tables": tables}).encode()
    assert parsers.one_input(bytes([number_of(parser), option]) + content) is False


def test_every_parser_takes_one_of_the_seeds():
    taken = {parsers.PARSERS[data[0]].__name__ for data in parsers.seed_inputs().values() if parsers.one_input(data)}
    assert taken == {parser.__name__ for parser in parsers.PARSERS}


def test_the_target_sees_a_parser_that_fails(monkeypatch):
    def broken(data: bytes, option: int) -> None:
        raise KeyError(data)

    monkeypatch.setattr(parsers, "PARSERS", (broken,))
    with pytest.raises(KeyError):
        parsers.one_input(b"\0\0x")


def test_the_target_sees_a_message_of_two_lines(monkeypatch):
    def torn(data: bytes, option: int) -> None:
        raise parsers.SffFastError("a\nb")

    monkeypatch.setattr(parsers, "PARSERS", (torn,))
    with pytest.raises(AssertionError, match="several lines"):
        parsers.one_input(b"\0\0x")


@pytest.mark.parametrize("property_", properties.PROPERTIES, ids=lambda p: p.__name__)
def test_a_property_of_the_python_layer_holds(property_):
    properties.run(property_, 0, 30)


def test_a_property_that_does_not_hold_is_seen(monkeypatch):
    monkeypatch.setattr(properties, "hide_patches", lambda *arguments: parsers.torch.zeros(1, 1, 1, dtype=bool))
    with pytest.raises(AssertionError):
        properties.run(properties.a_mask_hides_as_many_patches_as_asked_in_whatever_batch, 0, 5)


def fuzzing(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/fuzz.py"), "--fresh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["parsers", "properties", "table"])
def test_a_minute_of_fuzzing_finds_nothing(target):
    if target == "parsers":
        pytest.importorskip("atheris", reason="atheris is not installed: make test-slow installs it")
    if target == "table" and not any(map(shutil.which, CLANG)):
        pytest.skip("clang++ is absent: apt-get install -y --no-install-recommends clang libclang-rt-14-dev")
    done = fuzzing("--minutes", "1", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was found" in done.stdout
    if target != "properties":
        (units,) = (line for line in done.stdout.splitlines() if "number_of_executed_units" in line)
        assert int(units.split()[-1]) > 0


def test_an_unknown_target_is_refused():
    done = fuzzing("tables")
    assert done.returncode == 2
    assert "expected some of parsers, properties, table, got tables" in done.stderr
