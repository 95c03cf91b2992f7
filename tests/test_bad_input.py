# ruff: noqa: E501  (tables of cases are read by line)
"""Bad input to the command line: one line that names the thing, exit code 2, nothing written."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sff_fast
from sff_fast.cli import main

HOURS = [str(t).replace("T", " ") for t in np.datetime64("2020-01-01T00:00", "m") + 60 * np.arange(200)]
NUMBERS = [f"{20 + 3 * np.sin(i / 4):.4f}" for i in range(200)]
TIMER = ["--family", "timer", "--tiny"]
LENGTHS = ["--context-length", "96", "--prediction-length", "24"]


class Net(nn.Module):
    """A parameter of every distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Linear(3, 2)
        self.n = nn.Embedding(4, 3)
        self.t = nn.Parameter(nn.init.trunc_normal_(torch.empty(5), 0.0, 1.0, -2.0, 2.0))
        self.c = nn.Parameter(torch.ones(3))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A plan, a checkpoint that fits it and a table that can be used."""
    folder = tmp_path_factory.mktemp("made")
    sff_fast.trace(Net).save(folder / "plan.json")
    save_file(Net().state_dict(), folder / "in.safetensors")
    hours = [str(t).replace("T", " ") for t in np.datetime64("2020-01-01T00:00", "m") + 60 * np.arange(400)]
    (folder / "good.csv").write_bytes(table(NUMBERS * 2, hours))
    return folder


def table(values: list[str], stamps: list[str] = HOURS, sep: str = ",", head: str = "date,x") -> bytes:
    lines = [head.replace(",", sep), *(f"{stamp}{sep}{value}" for stamp, value in zip(stamps, values))]
    return ("\n".join(lines) + "\n").encode()


def at(index: int, value: str, values: list[str]) -> list[str]:
    return [*values[:index], value, *values[index + 1 :]]


def snapshot(folder: Path) -> dict[str, Any]:
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def refused(folder: Path, arguments: list[Any], names: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr that names the thing, exit code 2, and the folder as it was."""
    before = snapshot(folder)
    threads = torch.get_num_threads()
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    torch.set_num_threads(threads)
    lines = streams.err.splitlines()
    assert code == 2, streams.err
    assert lines[0].startswith("sff-fast: error: "), streams.err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("Try 'sff-fast")), streams.err
    assert re.search(names, lines[0]), lines[0]
    assert streams.out == ""
    assert snapshot(folder) == before


# ---------------------------------------------------------------------- tables
def dates(*stamps: str) -> bytes:
    return table(NUMBERS, [*stamps, *HOURS[len(stamps) :]])


DAYS = np.datetime64("2020-03-01") + np.arange(200)
FORMATS = {
    "iso": [str(day) for day in DAYS],
    "slashes": [str(day).replace("-", "/") for day in DAYS],
    "german": ["{2}.{1}.{0}".format(*str(day).split("-")) for day in DAYS],
    "american": ["{1}/{2}/{0}".format(*str(day).split("-")) for day in DAYS],
    "with a T": [f"{day}T00:00:00" for day in DAYS],
}
"""The same 200 days in five formats."""
WRONG = {"a word": "yesterday", "empty": "", "month 13": "2020-13-40", "twice": None, "the other order": "2020-31-12 99"}


def wrong_date(form: str, how: str) -> bytes:
    stamps = FORMATS[form]
    return table(NUMBERS, at(50, stamps[49] if WRONG[how] is None else WRONG[how], stamps))


def utf(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


TEXT = table(NUMBERS).decode()
CSV: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank lines": (b"\n\n\n", "is empty"),
    "a BOM alone": (b"\xef\xbb\xbf", "is empty"),
    "header alone": (b"date,x\n", "no data"),
    "header with BOM alone": (b"\xef\xbb\xbfdate,x\n", "no data"),
    "one row": (table(NUMBERS[:1]), "row|shorter|date"),
    "two rows": (table(NUMBERS[:2]), "row"),
    "one row fewer than the context": (table(NUMBERS[:95]), "95 rows"),
    "one column of dates": (("date\n" + "\n".join(HOURS)).encode(), "no numeric column"),
    "one column of text": (b"a\nx\ny\n", "no numeric column"),
    "numbers in words": (table(["twelve"] * 200), "no numeric column"),
    "one word": (table(at(3, "twelve", NUMBERS)), "line 5, column 'x'.*'twelve'"),
    "a decimal comma": (table(at(3, "1,5", NUMBERS), sep=";"), "line 5, column 'x'.*decimal comma"),
    "thousands": (table(at(3, "1,000,000", NUMBERS), sep=";"), "line 5, column 'x'"),
    "an underscore": (table(at(3, "1_000", NUMBERS)), "line 5, column 'x'"),
    "hexadecimal": (table(at(3, "0x1F", NUMBERS)), "line 5, column 'x'"),
    "a unit": (table(at(3, "21 °C", NUMBERS)), "line 5, column 'x'"),
    "per cent": (table(at(3, "5%", NUMBERS)), "line 5, column 'x'"),
    "true": (table(at(3, "true", NUMBERS)), "line 5, column 'x'"),
    "a formula": (table(at(3, "=A1+B2", NUMBERS)), "line 5, column 'x'"),
    "#DIV/0!": (table(at(3, "#DIV/0!", NUMBERS)), "line 5, column 'x'"),
    "a minus of typesetters": (table(at(3, "\u22125", NUMBERS)), "line 5, column 'x'"),
    "missing": (table(at(3, "", NUMBERS)), "line 5, column 'x'.*missing"),
    "NA": (table(at(3, "NA", NUMBERS)), "line 5, column 'x'.*missing"),
    "nan": (table(at(199, "nan", NUMBERS)), "line 201, column 'x'.*missing"),
    "infinity": (table(at(3, "inf", NUMBERS)), "line 5, column 'x'.*finite"),
    "minus infinity": (table(at(3, "-Infinity", NUMBERS)), "line 5, column 'x'.*finite"),
    "1e308": (table(at(3, "1e308", NUMBERS)), "line 5, column 'x'.*too large"),
    "-1e308": (table(at(3, "-1e308", NUMBERS)), "line 5, column 'x'.*too large"),
    "1e400": (table(at(3, "1e400", NUMBERS)), "line 5, column 'x'"),
    "all missing": (table([""] * 200), "'x'|numeric"),
    "constant": (table(["7"] * 200), "'x'.*constant|constant"),
    "a duplicate name": (table([f"{n},{n}" for n in NUMBERS], head="date,x,x"), "named 'x'"),
    "three duplicates": (table([f"{n},{n},{n}" for n in NUMBERS], head="date,x,x,x"), "named 'x'"),
    "two columns of dates": (table([f"{n},{h}" for n, h in zip(NUMBERS, HOURS)], head="date,x,until"), "column 'until'"),
    "a column of text": (table([f"{n},Oslo" for n in NUMBERS], head="date,x,city"), "column 'city'"),
    "a value too many": (table(at(3, "1,2", NUMBERS)), "line 5"),
    "a value too few": (table([f"{n},1" for n in at(3, "", NUMBERS)[:3]] + ["5"] + [f"{n},1" for n in NUMBERS[4:]], head="date,x,y"), "line 5"),
    "open quotes": (table(at(3, '"1', NUMBERS)), "line 5"),
    "text behind a quote": (table(at(3, '"1"2', NUMBERS)), "line 5"),
    "a null character": (table(NUMBERS) + b"\0", "null character"),
    "Latin-1": (table(at(3, "é", NUMBERS)).decode().encode("latin-1"), "line 5.*UTF-8"),
    "UTF-16 cut short": (utf(TEXT, "utf-16")[:-1], "UTF-16"),
    "UTF-16 without a mark": (utf(TEXT, "utf-16-le"), "null character"),
    "UTF-32": (utf(TEXT, "utf-32"), "null character"),
    "JSON": (b'[{"date": "2020-01-01", "x": 1}]', "line 1.*quotes"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "no numeric column"),
    "a zip file": (b"PK\x03\x04" + bytes(100), "null character"),
    "random bytes": (bytes(range(256)) * 4, "not UTF-8|null character"),
    "a parquet file by the wrong name": (b"PAR1" + bytes(60) + b"PAR1", "null character"),
    "unsorted": (dates(HOURS[1], HOURS[0]), "column 'date'.*sort"),
    "backwards": (table(NUMBERS, HOURS[::-1]), "column 'date'.*sort"),
    "a stamp twice": (table(NUMBERS, at(50, HOURS[49], HOURS)), "line 52.*'date'.*twice"),
    "rows missing": (table(NUMBERS[:197], [*HOURS[:50], *HOURS[53:]]), "'date'.*missing between"),
    "an irregular step": (table(NUMBERS, at(50, HOURS[50][:-2] + "17", HOURS)), "'date'.*irregular"),
    "day or month": (table(NUMBERS[:3], ["01/02/2020", "02/03/2020", "03/04/2020"]), "'date'.*day or month"),
    "with and without a zone": (dates(HOURS[0] + "Z"), "'date'.*time zone"),
    "the 29th of February 2021": (table(NUMBERS[:3], ["2021-02-27", "2021-02-28", "2021-02-29"]), "'date'.*2021-02-29"),
    "hour 24": (dates("2019-12-31 24:00"), "'date'.*24:00"),
}  # fmt: skip
CSV |= {f"dates, {form}, {how}": (wrong_date(form, how), "column 'date'") for form in FORMATS for how in WRONG}


@pytest.mark.parametrize("case", CSV)
def test_a_table_that_cannot_be_used(tmp_path, capsys, case):
    content, names = CSV[case]
    path = tmp_path / "case.csv"
    path.write_bytes(content)
    refused(
        tmp_path,
        ["forecast", *TIMER, "--data", path, *LENGTHS, "--out", tmp_path / "out.csv"],
        rf"case\.csv.*({names})|({names}).*case\.csv",
        capsys,
    )


@pytest.mark.parametrize("form", FORMATS)
def test_the_five_formats_of_dates_are_read_where_they_are_right(tmp_path, capsys, form):
    (tmp_path / "good.csv").write_bytes(table(NUMBERS, FORMATS[form]))
    assert main(["forecast", *TIMER, "--data", str(tmp_path / "good.csv"), *LENGTHS]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("2020-09-17")  # the day after the 200th


FRAMES: dict[str, tuple[Callable[[], Any], str]] = {
    "no column": (lambda: {}, "column|empty|rows"),
    "no row": (lambda: {"x": []}, "row|no data|empty"),
    "text": (lambda: {"x": ["a", "b"]}, "numeric"),
    "NaN": (lambda: {"x": [1.0, float("nan"), *range(150)]}, "'x'"),
    "infinity": (lambda: {"x": [1.0, float("inf"), *range(150)]}, "'x'"),
    "1e308": (lambda: {"x": [1e308, -1e308, *range(150)]}, "'x'"),
    "lists": (lambda: {"x": [[1.0], [2.0]]}, "column 'x'"),
    "few rows": (lambda: {"x": [1.0, 2.0]}, "2 rows"),
    "null dates": (lambda: {"date": [None, *np.datetime64("2020-01-01") + np.arange(149)], "x": list(range(150))}, "'date'"),
    "dates twice": (lambda: {"date": [np.datetime64("2020-01-01")] * 150, "x": list(range(150))}, "'date'"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_parquet_file_that_cannot_be_used(tmp_path, capsys, case):
    import pandas as pd

    make, names = FRAMES[case]
    path = tmp_path / "case.parquet"
    pd.DataFrame(make()).to_parquet(path)
    refused(
        tmp_path,
        ["forecast", *TIMER, "--data", path, *LENGTHS, "--out", tmp_path / "out.csv"],
        rf"case\.parquet.*({names})",
        capsys,
    )


OTHER_FILES: dict[str, tuple[str, bytes]] = {
    "parquet cut short": ("case.parquet", b"PAR1 and no more"),
    "an empty parquet file": ("case.parquet", b""),
    "NumPy cut short": ("case.npy", b"\x93NUMPY\x01\0"),
    "an empty NumPy file": ("case.npy", b""),
    "gzip cut short": ("case.csv.gz", b"\x1f\x8b\x08\0"),
    "no gzip file": ("case.csv.gz", b"date,x\n"),
    "a spreadsheet": ("case.xlsx", b"PK\x03\x04"),
    "no ending": ("case", b"date,x\n"),
    "a double ending": ("case.csv.zip", b"date,x\n"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_another_file_that_cannot_be_used(tmp_path, capsys, case):
    name, content = OTHER_FILES[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, ["forecast", *TIMER, "--data", tmp_path / name, *LENGTHS], re.escape(name), capsys)


# ---------------------------------------------------------------------- plans
def put(*path: Any) -> Callable[[dict], None]:
    """Sets what lies at the keys to the last argument."""

    def edit(plan: dict) -> None:
        place: Any = plan
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return edit


def drop(*path: Any) -> Callable[[dict], None]:
    def edit(plan: dict) -> None:
        place: Any = plan
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return edit


T, C, U, BIAS, N = range(5)  # the order of the plan's parameters


def drawn(number: int, field: str, value: Any) -> Callable[[dict], None]:
    return put("parameters", number, "segments", 0, "distribution", field, value)


def segment(number: int, field: str, value: Any) -> Callable[[dict], None]:
    return put("parameters", number, "segments", 0, field, value)


PLANS: dict[str, tuple[Callable[[dict], None], str]] = {
    "no schema": (drop("schema"), "schema"),
    "schema 0": (put("schema", 0), "schema 0"),
    "schema 2": (put("schema", 2), "schema 2"),
    "schema in words": (put("schema", "1"), "schema '1'"),
    "schema null": (put("schema", None), "schema None"),
    "no hash": (drop("hash"), "hash"),
    "another hash": (put("hash", "0" * 64), "was changed"),
    "hash null": (put("hash", None), "was changed|hash"),
    "a changed mean": (drawn(N, "mean", 0.5), "was changed"),
    "a changed bound": (drawn(U, "low", -0.1), "was changed"),
    "a changed name": (put("parameters", U, "name", "v.weight"), "plan.json|v.weight"),
    "a changed shape": (put("parameters", C, "shape", [4]), "plan.json|'c'"),
    "a shape below 0": (put("parameters", C, "shape", [-3]), "plan.json|'c'"),
    "a shape in words": (put("parameters", C, "shape", ["3"]), "plan.json|'c'"),
    "a shape of fractions": (put("parameters", C, "shape", [2.5]), "plan.json|'c'"),
    "an endless shape": (put("parameters", C, "shape", [2**70]), "plan.json|'c'"),
    "no shape": (drop("parameters", C, "shape"), "shape"),
    "an unknown dtype": (put("parameters", C, "dtype", "float3"), "float3"),
    "no dtype": (drop("parameters", C, "dtype"), "dtype"),
    "no parameters": (drop("parameters"), "parameters"),
    "parameters null": (put("parameters", None), "plan.json"),
    "an empty list of parameters": (put("parameters", []), "plan.json"),
    "a parameter twice": (lambda p: p["parameters"].append(copy.deepcopy(p["parameters"][0])), "plan.json|'t'"),
    "no versions": (drop("versions"), "versions"),
    "notes null": (put("notes", None), "plan.json"),
    "std below 0": (drawn(N, "std", -1.0), "std"),
    "std in words": (drawn(N, "std", "one"), "std"),
    "std null": (drawn(N, "std", None), "std"),
    "std of 1e39": (drawn(N, "std", 1e39), "std"),
    "mean of 1e300": (drawn(N, "mean", 1e300), "mean"),
    "std 0 of a truncated normal": (drawn(T, "std", 0.0), "std"),
    "std below 0 of a truncated normal": (drawn(T, "std", -1.0), "std"),
    "a above b": (drawn(T, "a", 3.0), "a <= b|a=3"),
    "bounds without mass": (put("parameters", T, "segments", 0, "distribution", {"kind": "trunc_normal", "mean": 0.0, "std": 1.0, "a": 50.0, "b": 60.0}), "probability"),
    "low above high": (drawn(U, "low", 2.0), "low <= high"),
    "an unknown kind": (drawn(U, "kind", "cauchy"), "cauchy"),
    "no kind": (drop("parameters", U, "segments", 0, "distribution", "kind"), "kind"),
    "a field too many": (drawn(U, "scale", 1.0), "scale"),
    "a field missing": (drop("parameters", U, "segments", 0, "distribution", "high"), "high"),
    "a distribution in words": (segment(U, "distribution", "uniform"), "distribution"),
    "no segments": (put("parameters", U, "segments", []), "plan.json|'u.weight'"),
    "a segment beyond the end": (segment(U, "offset", 4), "plan.json|'u.weight'"),
    "a segment before the beginning": (segment(U, "offset", -1), "plan.json|'u.weight'"),
    "a segment of other sizes": (segment(U, "size", [2, 3]), "plan.json|'u.weight'"),
    "strides below 0": (segment(U, "strides", [-1]), "plan.json|'u.weight'"),
    "a draw before the beginning": (segment(U, "draw_offset", -5), "plan.json|'u.weight'"),
    "aliases null": (put("parameters", U, "aliases", None), "plan.json"),
    "a changed program": (put("program", "sha256", "0" * 64), "plan.json"),
    "a program in words": (put("program", "none"), "plan.json"),
    "tables that are missing": (put("tables", {"file": "gone.safetensors", "sha256": "0" * 64}), "gone.safetensors"),
    "tables without a hash": (put("tables", {"file": "plan.json"}), "plan.json"),
    "tables without a file": (put("tables", {"sha256": "0" * 64}), "plan.json"),
    "tables in words": (put("tables", "x"), "plan.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_cannot_be_used(made, tmp_path, capsys, case):
    edit, names = PLANS[case]
    content = json.loads((made / "plan.json").read_text())
    edit(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    refused(
        tmp_path,
        ["smooth", made / "in.safetensors", tmp_path / "out.safetensors", "--plan", tmp_path / "plan.json", "--quiet"],
        names,
        capsys,
    )


PLAN_TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "plan.json"),
    "a list": (b"[]", "plan.json"),
    "a number": (b"3", "plan.json"),
    "null": (b"null", "plan.json"),
    "cut short": (b'{"schema": 1, "hash": "', "plan.json"),
    "NaN bounds": (b'{"schema": NaN}', "NaN"),
    "infinite bounds": (b'{"schema": 1, "x": -Infinity}', "Infinity"),
    "a key twice": (b'{"schema": 1, "schema": 1}', "schema"),
    "binary": (b"\xff\xfe\x00", "plan.json"),
    "nested without end": (b"[" * 100_000, "plan.json"),
}


@pytest.mark.parametrize("case", PLAN_TEXTS)
def test_a_text_that_is_no_plan(made, tmp_path, capsys, case):
    content, names = PLAN_TEXTS[case]
    (tmp_path / "plan.json").write_bytes(content)
    refused(
        tmp_path,
        ["smooth", made / "in.safetensors", tmp_path / "out.safetensors", "--plan", tmp_path / "plan.json"],
        names,
        capsys,
    )


# ---------------------------------------------------------------------- safetensors
def tensor(dtype: Any = "F32", shape: Any = (3,), offsets: Any = (0, 12)) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
    }


def file_of(header: Any, data: int = 12, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "case"),
    "seven bytes": (bytes(7), "case"),
    "eight bytes": (bytes(8), "case"),
    "text": (b"this is no checkpoint at all", "case"),
    "a pickle": (b"\x80\x02}q\0." + bytes(20), "case"),
    "a huge header": (file_of({"c": tensor()}, length=2**40), "header"),
    "the largest header": (file_of({"c": tensor()}, length=2**64 - 1), "header"),
    "a header beyond the limit": (file_of({"c": tensor()}, length=100_000_001), "header"),
    "a header one byte too long": (file_of({"c": tensor()}, data=0, length=200), "header"),
    "a header cut short": (file_of({"c": tensor()}, length=10), "header"),
    "a list": (file_of([]), "header"),
    "a header that is no text": (file_of(b"\xff\xfe{}"), "header"),
    "a name twice": (file_of(b'{"c": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}, "c": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'), "case"),
    "metadata in numbers": (file_of({"__metadata__": {"a": 1}, "c": tensor()}), "metadata"),
    "metadata as a list": (file_of({"__metadata__": [], "c": tensor()}), "metadata"),
    "an entry in words": (file_of({"c": "F32"}), "'c'"),
    "an entry without offsets": (file_of({"c": {"dtype": "F32", "shape": [3]}}), "'c'"),
    "an entry without a dtype": (file_of({"c": {"shape": [3], "data_offsets": [0, 12]}}), "'c'"),
    "an unknown dtype": (file_of({"c": tensor("F33")}), "F33"),
    "a dtype in numbers": (file_of({"c": tensor(32)}), "'c'"),
    "a dtype as a list": (file_of({"c": tensor(["F32"])}), "'c'"),
    "a shape below 0": (file_of({"c": tensor(shape=(-3,))}), "'c'"),
    "a shape of fractions": (file_of({"c": tensor(shape=(1.5, 2))}), "'c'"),
    "a shape in words": (file_of({"c": tensor(shape="3")}), "'c'"),
    "a shape of truth": (file_of({"c": tensor(shape=(True, 3))}), "'c'"),
    "an overflowing shape": (file_of({"c": tensor(shape=(2**62, 4))}), "'c'"),
    "an astronomic shape": (file_of({"c": tensor(shape=(2**62,) * 40)}), "'c'"),
    "offsets of another size": (file_of({"c": tensor(offsets=(0, 8))}), "'c'"),
    "offsets backwards": (file_of({"c": tensor(offsets=(12, 0))}), "'c'"),
    "offsets below 0": (file_of({"c": tensor(offsets=(-12, 0))}), "'c'"),
    "offsets of fractions": (file_of({"c": tensor(offsets=(0.0, 12.0))}), "'c'"),
    "three offsets": (file_of({"c": tensor(offsets=(0, 6, 12))}), "'c'"),
    "offsets beyond the end": (file_of({"c": tensor(offsets=(0, 12))}, data=4), "case"),
    "offsets far beyond the end": (file_of({"c": tensor(offsets=(2**63, 2**63 + 12))}), "'c'"),
    "a gap": (file_of({"c": tensor(offsets=(4, 16))}, data=16), "'c'"),
    "overlap": (file_of({"c": tensor(), "d": tensor(offsets=(6, 18))}, data=18), "'d'"),
    "the same bytes twice": (file_of({"c": tensor(), "d": tensor()}), "'[cd]'"),
    "bytes left over": (file_of({"c": tensor()}, data=13), "case"),
    "bytes missing": (file_of({"c": tensor()}, data=11), "case"),
    "integers": (file_of({"c": tensor("I32")}), "'c'|lacks|'t'"),
    "another shape": (file_of({"c": tensor(shape=(3, 1))}), "'c'|lacks|'t'"),
    "one tensor of five": (file_of({"c": tensor()}), "'t'"),
    "no tensor": (file_of({}, data=0), "case|'t'"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_checkpoint_that_cannot_be_used(made, tmp_path, capsys, case):
    content, names = SAFETENSORS[case]
    (tmp_path / "case.safetensors").write_bytes(content)
    refused(
        tmp_path,
        ["smooth", tmp_path / "case.safetensors", tmp_path / "out.safetensors", "--plan", made / "plan.json"],
        names,
        capsys,
    )


# ---------------------------------------------------------------------- options
def counts(option: str) -> list[tuple[str, str, str]]:
    return [(option, value, re.escape(option)) for value in ("0", "-1", "1.5", "many", "")]


def shares(option: str, above: str) -> list[tuple[str, str, str]]:
    return [(option, value, re.escape(option)) for value in ("-0.1", above, "nan", "inf", "half", "")]


FINETUNE = [
    *counts("--epochs"), *counts("--batch-size"), *counts("--max-steps"), *counts("--patience"), *counts("--micro-batch"),
    *counts("--context-length"), *counts("--prediction-length"), *counts("--stride"), *counts("--lp-epochs"), *counts("--checkpoint-every"),
    *counts("--threads"), ("--threads", "4097", "--threads"),
    *shares("--lr", "-1e-9"), ("--lr", "0", "--lr"), *shares("--train-fraction", "1.01"), ("--train-fraction", "0", "--train-fraction"),
    *shares("--weight-decay", "-1"), *shares("--grad-clip", "0"), *shares("--alpha", "1.0001"),
    ("--alpha", "head.*=2", "--alpha"), ("--alpha", "head.*", "--alpha"), ("--alpha", "=1", "--alpha|pattern"),
    ("--seed", "-1", "--seed"), ("--seed", "18446744073709551616", "--seed"), ("--seed", "0.5", "--seed"), ("--seed", "x", "--seed"),
    ("--strategy", "magic", "--strategy"), ("--precision", "fp7", "--precision"), ("--optimizer", "sgd", "--optimizer"),
    ("--optimizer-state", "int4", "--optimizer-state"), ("--schedule", "zigzag", "--schedule"), ("--rng", "numpy", "--rng"),
    ("--device", "tpu", "device"), ("--device", "cuda:x", "device"), ("--device", "", "device"),
    ("--family", "tiemr", "tiemr"), ("--family", "", "family"), ("--checkpoint", "absent", "--checkpoint|--tiny"),
    ("--split", "0.9,0.9,0.1", "split|shares"), ("--split", "1,0,0", "split|share"), ("--split", "0.5,0.5", "split"), ("--split", "nan,0.1,0.1", "shares"), ("--split", "thirds", "split"), ("--split", "", "split"),
    ("--max-memory", "6", "max.memory|6"), ("--max-memory", "-6G", "max.memory"), ("--max-memory", "nanG", "max.memory"), ("--max-memory", "lots", "max.memory"), ("--max-memory", "1K", "max.memory|memory"),
    ("--fill", "zeros", "--fill"), ("--context-length", "97", "context_length"), ("--prediction-length", "100000", "prediction_length|rows"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value", "names"), FINETUNE, ids=[f"{option} {value!r}" for option, value, _ in FINETUNE])
def test_an_option_out_of_range(made, tmp_path, capsys, option, value, names):
    arguments = [
        "finetune",
        *TIMER,
        "--data",
        made / "good.csv",
        *LENGTHS,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
        option,
        value,
    ]
    refused(tmp_path, arguments, names, capsys)


# ---------------------------------------------------------------------- paths
def link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


PATHS: dict[str, tuple[Callable[[Path], str | Path], str]] = {
    "with spaces": (lambda f: f / "no such file.csv", "no such file.csv"),
    "in Unicode": (lambda f: f / "données 数据.csv", "données 数据.csv"),
    "upwards": (lambda f: f / "deep/../../absent.csv", r"absent\.csv"),
    "empty": (lambda f: "", "--data|path|file"),
    "a folder": (lambda f: f, "folder"),
    "a dangling link": (lambda f: link(f / "dangling.csv", "nowhere.csv"), "dangling.csv"),
    "a loop of links": (lambda f: link(f / "loop.csv", "loop.csv"), "loop.csv"),
    "a device": (lambda f: "/dev/null", "/dev/null"),
    "below a file": (lambda f: "/dev/null/x.csv", "x.csv"),
    "too long": (lambda f: f / ("x" * 300 + ".csv"), "x.csv"),
    "escape codes": (lambda f: f / "\x1b[2Jevil.csv", "evil.csv"),
    "a line break": (lambda f: f / "two\nlines.csv", "two.*lines.csv"),
    "a web address": (lambda f: "https://host/data.csv", "data.csv"),
}


@pytest.mark.parametrize("case", PATHS)
def test_a_path_to_data_that_cannot_be_read(tmp_path, capsys, case):
    make, names = PATHS[case]
    path = make(tmp_path)
    refused(tmp_path, ["forecast", *TIMER, "--data", path, *LENGTHS, "--out", tmp_path / "out.csv"], names, capsys)


OUTS: dict[str, tuple[Callable[[Path], str | Path], str]] = {
    "below a file": (lambda f: f / "here/out.safetensors", "here"),
    "in no folder": (lambda f: f / "no/such/out.safetensors", "such"),
    "a folder": (lambda f: f, "folder|exists|name"),
    "there already": (lambda f: f / "here", "here"),
    "itself": (lambda f: f / "in put é.safetensors", "dst is src"),
    "itself by ..": (lambda f: f / "../" / f.name / "in put é.safetensors", "dst is src"),
    "itself by a link": (lambda f: link(f / "link.safetensors", "in put é.safetensors"), "dst is src"),
    "too long": (lambda f: f / ("y" * 300), "yyy"),
}


@pytest.mark.parametrize("case", OUTS)
def test_a_path_that_cannot_be_written(made, tmp_path, capsys, case):
    make, names = OUTS[case]
    source = tmp_path / "in put é.safetensors"
    source.write_bytes((made / "in.safetensors").read_bytes())
    (tmp_path / "here").write_text("mine")
    refused(tmp_path, ["smooth", source, make(tmp_path), "--plan", made / "plan.json", "--quiet"], names, capsys)


def test_the_table_has_at_least_two_hundred_cases():
    assert sum(map(len, (CSV, FRAMES, OTHER_FILES, PLANS, PLAN_TEXTS, SAFETENSORS, FINETUNE, PATHS, OUTS))) >= 200
