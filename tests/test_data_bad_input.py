# ruff: noqa: E501  (tables of cases are read by line)
"""Every table that cannot be used is refused in one line that names file, line and column."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sff_fast.data import ForecastData, Table, read_table, split_borders
from sff_fast.errors import ArgumentError, DataError, SffFastError

HALVES = [f"2020-10-25 {stamp}" for stamp in ("01:00", "01:30", "02:00", "02:30", "02:00", "02:30", "03:00", "03:30")]
HOURS = [f"2020-01-{1 + h // 24:02d} {h % 24:02d}:00:00" for h in range(24 * 28)]


def csv(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def rows(values: list[str], stamps: list[str] = HOURS) -> bytes:
    """A file of dates and one column x."""
    return csv("date,x", *(f"{stamp},{value}" for stamp, value in zip(stamps, values)))


def counted(n: int = 20) -> list[str]:
    return [str(i * i % 7) for i in range(n)]


def replaced(index: int, value: str, values: list[str] | None = None) -> list[str]:
    result = list(values or counted())
    result[index] = value
    return result


# name of the file, its bytes, what the one line must say
FILES: list[tuple[str, bytes, str]] = [
    ("empty.csv", b"", "is empty: expected a header line"),
    ("blank.csv", b"\n\n  \n", "is empty: expected a header line"),
    ("header.csv", b"date,x,y\n", "has a header line and no data"),
    ("text.csv", csv("a,b", "x,y", "z,w"), "has no numeric column: .* its columns are 'a', 'b'"),
    ("dates.csv", csv("date", *HOURS[:5]), "has no numeric column"),
    ("nan.csv", rows(replaced(3, "")), r"line 5, column 'x': the value is missing \(NaN\), 1 of 20 .*--fill.*--drop"),
    ("na.csv", rows(replaced(19, "N/A", replaced(7, "nan"))), "line 9, column 'x': the value is missing .* 2 of 20"),
    ("allnan.csv", csv("x,y", *("1," for _ in range(5))), r"column 'y': all 5 values are missing; leave the column out"),
    ("inf.csv", rows(replaced(4, "inf")), "line 6, column 'x': expected a finite number, got inf"),
    ("minf.csv", rows(replaced(6, "-inf", replaced(4, "-Infinity"))), "line 6, .* got -inf, and 1 more value;"),
    ("1e308.csv", rows(replaced(2, "1e308")), r"line 4, column 'x': 1e\+308 is too large to compute with"),
    ("word.csv", rows(replaced(5, "error")), "line 7, column 'x': expected a number, got 'error'"),
    ("comma.csv", csv("date;x", *(f"{h};5,{i}" for i, h in enumerate(HOURS[:9]))), "line 2, column 'x': .*'5,0'; write the decimal comma as a point"),
    ("thousands.csv", csv("date;x", *(f"{h};1,000,00{i}" for i, h in enumerate(HOURS[:9]))), "without separators for the thousands"),
    ("underscore.csv", rows(replaced(1, "1_000")), "line 3, column 'x': expected a number, got '1_000'"),
    ("late.csv", csv("x", *["1"] * 9000, "oops", "1"), "line 9002, column 'x': expected a number, got 'oops'"),
    ("names.csv", csv("date,x", *(f"{h},EWR" for h in HOURS[:9])), "has no numeric column"),
    ("textcol.csv", csv("date,x,origin", *(f"{h},{i},EWR" for i, h in enumerate(HOURS[:9]))), r"line 2, column 'origin': expected numbers, the column holds text \('EWR'\)"),
    ("twodates.csv", csv("date,x,until", *(f"{h},{i % 3},{h}" for i, h in enumerate(HOURS[:9]))), "column 'until': expected numbers, the column holds text"),
    ("many.csv", csv("a,b", "1,2", "3,4,5", "1,2"), "line 3: expected 2 values as in the header, got 3"),
    ("few.csv", csv("a,b", "1,2", "", "3", "1,2"), "line 4: expected 2 values as in the header, got 1"),
    ("quoted.csv", csv('"a","b"', '"1","2"', '"3,"4"'), "line 3: .*; check the quotes in that line"),
    ("open.csv", csv('a,b', '1,2', '"3,4', '1,2'), "line 3: unexpected end of data; check the quotes"),
    ("twice.csv", csv("x,y,x", "1,2,3", "4,5,6"), "the columns 1 and 3 are both named 'x'"),
    ("latin.csv", csv("date,x", *(f"{h},1" for h in HOURS[:3])) + b"2020-01-01 03:00:00,\xe9\n", "line 5: this is not UTF-8 text"),
    ("utf16.csv", b"\xff\xfea", "line 1: this is not UTF-16 text"),
    ("binary.csv", b"a,b\n1,2\n\x00\x01", "line 3: holds a null character"),
    ("cut.csv.gz", gzip.compress(rows(counted()))[:-12], "is no complete gzip file"),
    ("fake.csv.gz", b"date,x\n", "is no complete gzip file"),
    ("data.xlsx", b"PK", "has an unknown file type '.xlsx': expected one of .csv"),
    ("data", b"x\n1\n", r"has an unknown file type '\(no ending\)'"),
    ("data.parquet.gz", b"x\n1\n", "has an unknown file type '.parquet.gz'"),
    ("bad.parquet", b"PAR1 not a parquet file", "cannot read the parquet file"),
    ("bad.npy", b"\x93NUMPY", "cannot read the NumPy file"),
    ("empty.npy", b"", "cannot read the NumPy file"),
    ("duplicate.csv", rows(counted(), [*HOURS[:10], *HOURS[9:19]]), "line 12, column 'date': the time stamp 2020-01-01 09:00 occurs twice"),
    ("clocks.csv", rows(counted(), [*HOURS[:3], *HOURS[2:19]]), "line 5, .*02:00 occurs twice; .*; if clocks were set back there, write local times with their offset"),
    ("clocks30.csv", rows(counted(8), HALVES), "line 6, .*02:00 comes after .*02:30; time stamps repeat.*; if clocks were set back there, write"),
    ("days.csv", rows(counted(4), ["2020-01-01", "2020-01-02", "2020-01-02", "2020-01-03"]), r"line 4, .*occurs twice; .*\(id_column, --id-column\)$"),
    ("unsorted.csv", rows(counted(), [*HOURS[:5], HOURS[6], HOURS[5], *HOURS[7:20]]), "line 8, column 'date': 2020-01-01 05:00 comes after 2020-01-01 06:00; sort the rows by time$"),
    ("backwards.csv", rows(counted(), HOURS[19::-1]), "column 'date': the rows run backwards in time; sort them"),
    ("gap.csv", rows(counted(), [*HOURS[:5], *HOURS[8:23]]), "line 7, column 'date': rows are missing between 2020-01-01 04:00 and 2020-01-01 08:00, 3 in all for a step of h"),
    ("irregular.csv", rows(counted(), [*HOURS[:5], "2020-01-01 05:17:00", *HOURS[6:20]]), "line 7, column 'date': the time stamps are irregular, .* 04:00 to 2020-01-01 05:17"),
    ("unsorted31.csv", rows(counted(3), ["13/01/2020", "12/01/2020", "14/01/2020"]), "line 3, .*2020-01-12 00:00 comes after 2020-01-13 00:00; sort"),
    ("lines.csv", csv('"two', 'lines",x', '"a', 'b",1', 'c,2', 'd,x', 'e,3'), "line 6, column 'x': expected a number, got 'x'"),
    ("nodate.csv", rows(counted(), replaced(4, "", HOURS[:20])), "line 6, column 'date': the time stamp is missing; write it or remove the row"),
    ("format.csv", rows(counted(), replaced(4, "01/01/2020 04:00", HOURS[:20])), "line 6, column 'date': expected a date in the format of '2020-01-01 00:00:00', got '01/01/2020 04:00'"),
    ("february.csv", rows(counted(3), ["2021-02-27", "2021-02-28", "2021-02-29"]), "line 4, column 'date': no such date or time: '2021-02-29'"),
    ("hour.csv", rows(counted(3), ["2021-02-27 22:00", "2021-02-27 23:00", "2021-02-27 24:00"]), "line 4, .*no such date or time: '2021-02-27 24:00'"),
    ("today.csv", rows(counted(3), ["today", "now", "NaT"]), "column 'date': "),
    ("weekday.csv", rows(counted(3), ["Monday", "Tuesday", "Friday"]), "line 2, column 'date': expected a date, got 'Monday'"),
    ("ambiguous.csv", rows(counted(3), ["01/02/2020", "02/03/2020", "03/04/2020"]), "line 2, column 'date': cannot tell whether day or month comes first"),
    ("zones.csv", rows(counted(3), ["2020-01-01 00:00Z", "2020-01-01 01:00", "2020-01-01 02:00Z"]), "line 3, column 'date': .* mixes time stamps with and without a time zone"),
    ("epoch.csv", csv("timestamp,x", *(f"{'' if i == 3 else 1_600_000_000 + 3600 * i},{i % 3}" for i in range(9))), "line 5, column 'timestamp': the time stamp is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), FILES, ids=[name for name, _, _ in FILES])
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / "with space é"
    path.mkdir()
    path = path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def frame(**columns: object) -> object:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(columns)


# what is read, and what the one line must say
SOURCES: list[tuple[str, Callable[[], object], type[SffFastError], str]] = [
    ("missing", lambda: "no/such file.csv", DataError, "cannot read the data file 'no/such file.csv': it does not exist"),
    ("missing parquet", lambda: "no/such.parquet", DataError, "'no/such.parquet': it does not exist"),
    ("missing npy", lambda: "no/such.npy", DataError, "'no/such.npy': it does not exist"),
    ("missing without ending", lambda: "no/such", DataError, "'no/such': it does not exist"),
    ("folder", lambda: ".", DataError, "'.' is a folder: expected a data file"),
    ("null", lambda: "a\0.csv", DataError, "holds a null character"),
    ("no table", lambda: 3, ArgumentError, "data must be a path, a pandas DataFrame or a NumPy array, got builtins.int"),
    ("list", lambda: [[1, 2]], ArgumentError, "got builtins.list"),
    ("3-d", lambda: np.zeros((2, 3, 4)), DataError, r"expected an array of shape \[time, channels\] or \[time\], got \[2, 3, 4\]"),
    ("0-d", lambda: np.zeros(()), DataError, r"got \[\]"),
    ("no rows", lambda: np.zeros((0, 2)), DataError, "the array is empty"),
    ("no columns", lambda: np.zeros((5, 0)), DataError, "the array is empty"),
    ("strings", lambda: np.array([["a"]]), DataError, "expected numbers, got an array of dtype <U1"),
    ("complex", lambda: np.zeros((3, 1), complex), DataError, "expected numbers, got an array of dtype complex128"),
    ("objects", lambda: np.array([[None]]), DataError, "expected numbers, got an array of dtype object"),
    ("NaN", lambda: np.array([[1.0, 2], [3, np.nan]]), DataError, "row 2, column 'column_2': the value is missing"),
    ("inf", lambda: np.array([1.0, np.inf, 2]), DataError, "row 2, column 'column_1': expected a finite number"),
    ("empty frame", lambda: frame(), DataError, "'the DataFrame' is empty"),
    ("frame of text", lambda: frame(a=["x", "y"]), DataError, "has no numeric column"),
    ("complex frame", lambda: frame(a=[1j, 2]), DataError, "column 'a': expected real numbers"),
    ("frame with NaN", lambda: frame(a=[1.0, None]), DataError, "row 2, column 'a': the value is missing"),
    ("frame of mixed", lambda: frame(a=["1", "2", "x"]), DataError, "row 3, column 'a': expected a number, got 'x'"),
    ("frame with a level", lambda: frame(a=[1, 2], b=[3, 4]).set_index(["a", "b"]).assign(c=1.0), DataError, "index of several levels"),
    ("frame of repeats", lambda: frame(a=[1.0, 2]).join(frame(b=[1.0, 2])).set_axis(["x", "x"], axis=1), DataError, "2 columns are named 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "error", "message"), [case[1:] for case in SOURCES], ids=[case[0] for case in SOURCES])
def test_a_bad_source_is_refused_in_one_line(source: Callable[[], object], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_table(source())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fill": "zero"}, ArgumentError, "fill must be one of 'interpolate', 'ffill' or None, got 'zero'"),
        ({"columns": ["y"]}, ArgumentError, "has no column 'y'; its columns are 'date', 'x'"),
        ({"columns": "x"}, ArgumentError, "columns must be a list of different names, got 'x'"),
        ({"columns": []}, ArgumentError, "columns must be a list"),
        ({"columns": ["x", "x"]}, ArgumentError, "columns must be a list of different names"),
        ({"columns": ["x", "date"], "date_column": "date"}, DataError, "column 'date'|no numeric"),
        ({"date_column": "when"}, ArgumentError, "has no column 'when'; its columns are"),
        ({"date_column": "x"}, DataError, "column 'x': expected dates, got numbers that are none"),
    ],
)
def test_a_bad_option_of_reading_is_refused(tmp_path: Path, options: dict, error: type, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(rows(counted()))
    if options.get("columns") == ["x", "date"]:
        # A column cannot be time stamp and channel at once: the date is left out of the channels.
        assert read_table(path, **options).columns == ["x"]
        return
    with pytest.raises(error, match=message):
        read_table(path, **options)


def test_options_of_reading_do_not_apply_to_a_table() -> None:
    table = Table(np.random.rand(5, 1), ["x"])
    assert read_table(table) is table
    with pytest.raises(ArgumentError, match="apply to a source that is read, not to a Table"):
        read_table(table, drop=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), ["x"]), r"expected values of shape \[time, channels\], got \[3\]"),
        ((np.zeros((3, 2)), ["x"]), "2 channels but 1 column names"),
        ((np.zeros((3, 1)), ["x"], np.array(["2020-01-01"], dtype="datetime64[us]")), "3 rows but 1 time stamps"),
        ((np.full((3, 1), np.nan), ["x"]), "all 3 values are missing"),
        ((np.array([[1.0], [np.inf]]), ["x"]), "row 2, column 'x': expected a finite number"),
    ],
)
def test_a_table_made_by_hand_is_checked_too(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Table(*arguments)


def table(n: int = 100, source: str = "file.csv", **options: object) -> Table:
    values = np.random.default_rng(0).normal(size=(n, 2))
    return Table(values, ["x", "y"], source=source, **options)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("ett-day", "split must be ett-hour, ett-minute or three shares such as 0.7,0.1,0.2, got 'ett-day'"),
        ("", "got ''"),
        ("0.7,0.3", r"\(2 parts\)"),
        ("0.7,0.1,0.1,0.1", r"\(4 parts\)"),
        ("0.7,0.1,x", "got '0.7,0.1,x'"),
        ("0.7,0.1,0.3", r"must add up to 1, got '0.7,0.1,0.3' \(1.1\)"),
        ("0.7,0.3,0", "must lie between 0 and 1"),
        ("1.2,-0.1,-0.1", "must lie between 0 and 1"),
        ("nan,0.5,0.5", "must lie between 0 and 1"),
        ((0.5, 0.5), r"\(2 parts\)"),
        ((0.5, None, 0.5), "split must be"),
        (0.7, "got 0.7"),
        (None, "got None"),
    ],
)
def test_a_bad_split_is_refused(split: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ForecastData(table(), split, 8, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 0}, "context_length must be a whole number of at least 1, got 0"),
        ({"context_length": 8.0}, "context_length must be a whole number of at least 1, got 8.0"),
        ({"prediction_length": -1}, "prediction_length must be"),
        ({"prediction_length": True}, "prediction_length must be"),
        ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({"train_fraction": 0}, "train_fraction must be above 0 and at most 1, got 0"),
        ({"train_fraction": 1.5}, "train_fraction must be above 0 and at most 1, got 1.5"),
        ({"train_fraction": float("nan")}, "train_fraction must be .* got nan"),
        ({"train_fraction": "0.1"}, "train_fraction must be .* got '0.1'"),
    ],
)
def test_a_bad_argument_of_the_windows_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ForecastData(table(), "0.7,0.1,0.2", **{"context_length": 8, "prediction_length": 4, **options})


@pytest.mark.parametrize(
    ("n", "split", "context_length", "prediction_length", "part"),
    [
        (100, "0.7,0.1,0.2", 67, 4, "train"),
        (100, "0.7,0.1,0.2", 8, 11, "val"),
        (100, "0.1,0.7,0.2", 8, 3, "train"),
        (100, "0.6,0.3,0.1", 8, 11, "test"),
        (1, "0.7,0.1,0.2", 1, 1, "train"),
    ],
)
def test_a_series_shorter_than_a_window_is_refused_with_the_rows_that_are_needed(
    n: int, split: str, context_length: int, prediction_length: int, part: str
) -> None:
    message = f"^'file.csv': too short: the {part} part has .* needs at least ([0-9]+) rows and has {n}: use a longer one"
    with pytest.raises(DataError, match=message) as caught:
        ForecastData(table(n), split, context_length, prediction_length)
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    split_borders(needed, split, context_length, prediction_length)
    with pytest.raises(DataError, match="too short"):
        split_borders(needed - 1, split, context_length, prediction_length)


def test_a_table_shorter_than_the_ett_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"the split ett-hour needs 14400 rows .* has 14399: use a longer table, or shares"):
        ForecastData(table(14399), "ett-hour", 512, 96)
    with pytest.raises(DataError, match="ett-minute needs 57600 rows"):
        ForecastData(table(14400), "ett-minute", 512, 96)
    with pytest.raises(DataError, match=r"the train part has 8640 rows .* use a shorter context or horizon"):
        ForecastData(table(14400), "ett-hour", 8600, 96)
    ForecastData(table(14400), "ett-hour", 512, 96)


def test_a_channel_that_is_constant_in_the_train_part_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=(100, 3))
    values[:70, 1] = 0.1  # 0.1 has a rounding error, so its computed standard deviation need not be exactly 0
    values[:70, 2] = 5
    constant = Table(values, ["x", "y", "z"], source="file.csv")
    message = r"^'file.csv', column 'y': constant in the train part \(always 0.1 in 70 rows\), and 1 more column; leave it out"
    with pytest.raises(DataError, match=message):
        ForecastData(constant, "0.7,0.1,0.2", 8, 4)


def test_a_value_too_far_off_for_float32_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=(100, 2))
    values[90, 1] = 1e60
    with pytest.raises(DataError, match=r"'file.csv', row 91, column 'y': 1e\+60 is too far from the train part"):
        ForecastData(Table(values, ["x", "y"], source="file.csv"), "0.7,0.1,0.2", 8, 4)


def test_no_bad_input_warns_instead_of_raising(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, data, _ in FILES:
            (tmp_path / name).write_bytes(data)
            with pytest.raises(DataError):
                read_table(tmp_path / name)
    assert len(os.listdir(tmp_path)) == len(FILES)
