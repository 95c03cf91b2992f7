"""Tables are read from every source alike, and what is done about gaps is asked for and noted."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pytest

from sff_fast.data import ForecastData, Table, read_table

VALUES = np.array([[1.5, -2.0], [2.5, 1e-3], [0.0, 4.0], [7.0, 5.0]])
HOURS = np.datetime64("2020-02-28T22:00", "us") + np.arange(4) * np.timedelta64(1, "h")


def lines_of(stamps: list[str], separator: str = ",", values: np.ndarray = VALUES) -> list[str]:
    return [f"{s}{separator}{separator.join(map(repr, map(float, row)))}" for s, row in zip(stamps, values)]


def write(path: Path, lines: list[str], encoding: str = "utf-8", newline: str = "\n") -> Path:
    path.write_bytes((newline.join(lines) + newline).encode(encoding))
    return path


# --- shapes of CSV files ----------------------------------------------------------------------------------------------

ISO = ["2020-02-28 22:00:00", "2020-02-28 23:00:00", "2020-02-29 00:00:00", "2020-02-29 01:00:00"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separators_encodings_and_line_ends_are_recognised(tmp_path: Path, separator: str, encoding: str, newline: str) -> None:
    path = write(tmp_path / "a.csv", [separator.join(["date", "é", "y"]), *lines_of(ISO, separator)], encoding, newline)
    table = read_table(str(path))
    assert table.columns == ["é", "y"]
    np.testing.assert_array_equal(table.values, VALUES)
    np.testing.assert_array_equal(table.timestamps, HOURS)
    assert (table.frequency, table.notes, table.source) == ("h", (), str(path))


def test_quotes_spaces_blank_lines_and_compression_are_read(tmp_path: Path) -> None:
    lines = ["", '"date", "x, with comma",y ', ""]
    lines += [f'"{s}", {a!r} ,"{b!r}"' for s, (a, b) in zip(ISO, VALUES.tolist())]
    lines.insert(5, "  ")
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("\n".join([*lines, "", ""]).encode()))
    table = read_table(path)
    assert table.columns == ["x, with comma", "y"]
    np.testing.assert_array_equal(table.values, VALUES)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "a.csv", ["x,y", "1,2", "3,5"], "utf-8-sig")).columns == ["x", "y"]


def test_the_date_column_may_stand_anywhere_and_have_any_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["x,Messzeit,y", *(f"{a!r},{s},{b!r}" for s, (a, b) in zip(ISO, VALUES.tolist()))])
    table = read_table(path)
    assert table.columns == ["x", "y"]
    np.testing.assert_array_equal(table.timestamps, HOURS)


def test_a_named_date_column_wins_over_others(tmp_path: Path) -> None:
    later = [f"2021-02-28 {h}:00" for h in range(10, 14)]
    path = write(tmp_path / "a.csv", ["until,Date,x", *(f"{b},{a},{i % 3}" for i, (a, b) in enumerate(zip(ISO, later)))])
    assert read_table(path, drop=True).timestamps[0] == HOURS[0]
    assert str(read_table(path, date_column="until", drop=True).timestamps[0]) == "2021-02-28T10:00:00.000000"


@pytest.mark.parametrize(
    "stamps",
    [
        ["2020-02-28T22:00", "2020-02-28T23:00", "2020-02-29T00:00", "2020-02-29T01:00"],
        ["2020/02/28 22:00", "2020/02/28 23:00", "2020/02/29 0:00", "2020/02/29 1:00"],
        ["28.02.2020 22:00:00", "28.02.2020 23:00:00", "29.02.2020 00:00:00", "29.02.2020 01:00:00"],
        ["28/2/2020 22:00", "28/2/2020 23:00", "29/2/2020 0:00", "29/2/2020 1:00"],
        ["02/28/2020 22:00", "02/28/2020 23:00", "02/29/2020 00:00", "02/29/2020 01:00"],
        ["2020-02-28 22:00:00Z", "2020-02-28 23:00:00Z", "2020-02-29 00:00:00Z", "2020-02-29 01:00:00Z"],
        [
            "2020-02-29T00:00:00+02:00",
            "2020-02-29T01:00:00+02:00",
            "2020-02-29T01:00:00+01:00",
            "2020-02-28T20:00-0500",
        ],
        ["2020-02-28 22:00:00.000", "2020-02-28 23:00:00.000", "2020-02-29 00:00:00.000", "2020-02-29 01:00:00.000"],
        ["20200228 22:00", "20200228 23:00", "20200229 00:00", "20200229 01:00"],
        [str(1582927200 + 3600 * i) for i in range(4)],
        [str((1582927200 + 3600 * i) * 1000) for i in range(4)],
        [str((1582927200 + 3600 * i) * 10**9) for i in range(4)],
    ],
)
def test_dates_are_read_in_many_formats(tmp_path: Path, stamps: list[str]) -> None:
    table = read_table(write(tmp_path / "a.csv", ["date,x,y", *lines_of(stamps)]))
    np.testing.assert_array_equal(table.timestamps, HOURS)
    assert table.frequency == "h"


@pytest.mark.parametrize(
    ("stamps", "order"),
    [(["01/02/2020", "01/03/2020", "01/04/2020"], "month"), (["31/01/2020", "01/02/2020", "02/02/2020"], "day")],
)
def test_the_order_of_day_and_month_is_decided_over_the_whole_column_and_noted(
    tmp_path: Path, stamps: list[str], order: str
) -> None:
    if order == "month":
        stamps = [*stamps, "01/13/2020"]
    table = read_table(write(tmp_path / "a.csv", ["date,x", *(f"{s},{i}" for i, s in enumerate(stamps))]), drop=True)
    assert f"the dates in column 'date' were read with the {order} first" in table.notes


def test_the_order_of_day_and_month_is_told_by_the_order_of_the_rows(tmp_path: Path) -> None:
    # Day first these jump between months and backwards; month first they are three days in a row.
    path = write(tmp_path / "a.csv", ["date,x", "12/01/2020,1", "12/02/2020,2", "12/03/2020,1"])
    with pytest.raises(ValueError, match="cannot tell whether day or month"):
        read_table(path)  # month first: 1, 2, 3 December; day first: 12 January, 12 February, 12 March
    path = write(tmp_path / "b.csv", ["date,x", "11/12/2020,1", "12/01/2020,2", "12/02/2020,1"])
    assert [str(s)[:10] for s in read_table(path, drop=True).timestamps] == ["2020-11-12", "2020-12-01", "2020-12-02"]


def test_a_file_without_header_keeps_its_first_row(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.txt", ["5.5", " 6.5", "5.5"]))
    np.testing.assert_array_equal(table.values, [[5.5], [6.5], [5.5]])
    assert table.columns == ["column_1"]
    assert "no header" in table.notes[0]
    table = read_table(write(tmp_path / "b.csv", lines_of(ISO)))
    np.testing.assert_array_equal(table.values, VALUES)
    np.testing.assert_array_equal(table.timestamps, HOURS)


def test_a_header_of_numbers_and_an_index_without_name_are_recognised(tmp_path: Path) -> None:
    lines = [",0,1", *(f"{i},{a!r},{b!r}" for i, (a, b) in enumerate(VALUES.tolist()))]
    table = read_table(write(tmp_path / "a.csv", lines))
    assert table.columns == ["0", "1"]
    np.testing.assert_array_equal(table.values, VALUES)
    assert any("only numbers the rows" in note for note in table.notes)


def test_a_channel_with_a_time_like_name_that_is_no_time_stays_a_channel(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", ["day,x", "3,1", "1,2", "2,3"]))
    assert table.columns == ["day", "x"]
    assert table.timestamps is None


def test_columns_are_chosen_and_ordered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["date,x,y,name", *(f"{line},A" for line in lines_of(ISO))])
    table = read_table(path, columns=["y", "x"])
    assert table.columns == ["y", "x"]
    np.testing.assert_array_equal(table.values, VALUES[:, ::-1])


def test_long_files_are_read_over_several_chunks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20_000, 1))
    table = read_table(write(tmp_path / "a.csv", ["x", *map(repr, values[:, 0].tolist())]))
    np.testing.assert_array_equal(table.values, values)


# --- other sources ----------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_table(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"date": HOURS, "x": VALUES[:, 0], "y": VALUES[:, 1]})
    frame.to_parquet(tmp_path / "a.parquet")
    text = arrow.table({"date": ISO, "x": VALUES[:, 0], "y": arrow.array(VALUES[:, 1]).cast(arrow.float32())})
    parquet.write_table(text, tmp_path / "b.pq")
    sources = [
        write(tmp_path / "a.csv", ["date,x,y", *lines_of(ISO)]),
        tmp_path / "a.parquet",
        tmp_path / "b.pq",
        frame,
        frame.set_index("date"),
        frame.set_index(frame["date"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")).drop(columns="date"),
        frame.set_index(pandas.PeriodIndex(frame["date"], freq="h")).drop(columns="date"),
        frame.assign(date=ISO),
        frame.astype({"x": "float32", "y": "Float64"}),
        frame.astype({"x": object}),
    ]
    for number, source in enumerate(sources):
        table = read_table(source)
        assert table.columns == ["x", "y"], number
        np.testing.assert_allclose(table.values, VALUES, rtol=1e-7)  # some columns passed through float32
        np.testing.assert_array_equal(table.timestamps, HOURS)
        assert table.frequency == "h"


def test_arrays_and_series_are_tables_without_dates(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    np.save(tmp_path / "a.npy", VALUES)
    for source in (VALUES, VALUES.astype(np.float32), tmp_path / "a.npy", np.asfortranarray(VALUES)):
        table = read_table(source)
        np.testing.assert_allclose(table.values, VALUES, rtol=1e-7)
        assert table.columns == ["column_1", "column_2"]
        assert table.timestamps is None
        assert table.frequency is None
    series = pandas.Series([1, 2, 4], name="load", index=pandas.date_range("2020", periods=3, freq="D"))
    table = read_table(series)
    assert (table.columns, table.frequency) == (["load"], "D")
    np.testing.assert_array_equal(read_table(np.array([1, 2, 4])).values, [[1], [2], [4]])


def test_the_source_is_not_changed_and_not_shared() -> None:
    values = VALUES.copy()
    table = read_table(values)
    table.values[:] = 0
    np.testing.assert_array_equal(values, VALUES)


# --- frequency --------------------------------------------------------------------------------------------------------


def dated(stamps: np.ndarray, values: np.ndarray | None = None):
    pandas = pytest.importorskip("pandas")
    values = np.arange(len(stamps)) % 5 + 0.5 if values is None else values
    return pandas.DataFrame({"date": np.asarray(stamps, dtype="datetime64[us]"), "x": values})


def span(first: str, n: int, step: int, unit: str) -> np.ndarray:
    return np.datetime64(first) + np.arange(n) * np.timedelta64(step, unit)


WEEKDAYS = np.busday_offset(np.datetime64("2020-01-01"), np.arange(30))
MONTHS = np.datetime64("2020-01") + np.arange(14)


@pytest.mark.parametrize(
    ("stamps", "frequency"),
    [
        (span("2020-01-01T00:00:00", 9, 1, "s"), "s"),
        (span("2020-01-01T00:00:00", 9, 250, "ms"), "250ms"),
        (span("2020-01-01T00:07", 9, 15, "m"), "15min"),
        (span("2020-01-01T00", 9, 6, "h"), "6h"),
        (span("2020-01-01", 9, 1, "D"), "D"),
        (span("2020-01-01", 9, 7, "D"), "W"),
        (WEEKDAYS, "B"),
        (MONTHS.astype("datetime64[D]"), "M"),
        ((MONTHS + 1).astype("datetime64[D]") - 1, "M"),
        (MONTHS[::3].astype("datetime64[D]") + 14, "Q"),
        (np.array([f"{year}-12-31" for year in range(1990, 2000)], dtype="datetime64[D]"), "Y"),
        (np.array(["2021-07-01", "2021-08-01", "2021-09-01"], dtype="datetime64[D]"), "M"),  # twice 31 days
        (np.delete(span("2020-01-01T00", 30, 1, "h"), [4, 5, 9]), "h"),
        (np.delete(WEEKDAYS, 7), "B"),
        (np.delete(MONTHS, 7).astype("datetime64[D]"), "M"),
        (span("1500-01-01T00", 9, 1, "h"), "h"),
    ],
)
def test_the_frequency_is_found_also_behind_gaps(stamps: np.ndarray, frequency: str) -> None:
    table = read_table(dated(stamps), fill="ffill")
    assert table.frequency == frequency
    assert table.timestamps[0] == stamps[0]
    assert table.timestamps[-1] == stamps[-1]
    assert set(np.asarray(stamps, dtype="datetime64[us]")) <= set(table.timestamps)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_interpolation_draws_a_line_and_ffill_repeats_and_both_say_so(caplog) -> None:
    values = np.array([1.0, np.nan, np.nan, 4.0, 5.0, np.nan, 9.0])
    frame = dated(span("2020-01-01T00", 7, 1, "h"), values)
    with caplog.at_level(logging.WARNING, logger="sff_fast"):
        table = read_table(frame, fill="interpolate")
    np.testing.assert_allclose(table.values[:, 0], [1, 2, 3, 4, 5, 7, 9], rtol=1e-15)
    note = "3 missing values in column 'x' were filled (interpolate), the longest run was 2"
    assert table.notes == (note,)
    assert note in caplog.text
    assert note in table.describe()["notes"]
    np.testing.assert_array_equal(read_table(frame, fill="ffill").values[:, 0], [1, 1, 1, 4, 5, 5, 9])


def test_missing_rows_are_inserted_and_filled() -> None:
    stamps = np.delete(span("2020-01-01T00", 7, 1, "h"), [2, 3])
    table = read_table(dated(stamps, np.array([0.0, 10, 40, 50, 20])), fill="interpolate")
    np.testing.assert_allclose(table.values[:, 0], [0, 10, 20, 30, 40, 50, 20], rtol=1e-15)
    np.testing.assert_array_equal(table.timestamps, span("2020-01-01T00", 7, 1, "h"))
    assert table.notes[0] == "2 missing rows were inserted for a step of h"


def test_edges_cannot_be_filled_and_are_cut_off_with_drop() -> None:
    values = np.array([np.nan, 1.0, np.nan, 3.0, np.nan, np.nan])
    frame = dated(span("2020-01-01T00", 6, 1, "h"), values)
    with pytest.raises(ValueError, match="the column begins with 1 missing value, which fill='interpolate' cannot fill"):
        read_table(frame, fill="interpolate")
    with pytest.raises(ValueError, match="the column begins with 1 missing value, which fill='ffill' cannot fill"):
        read_table(frame, fill="ffill")
    with pytest.raises(ValueError, match="the column ends with 2 missing values, which fill='interpolate' cannot fill"):
        read_table(dated(span("2020-01-01T00", 5, 1, "h"), values[1:]), fill="interpolate")
    table = read_table(frame, fill="interpolate", drop=True)
    np.testing.assert_array_equal(table.values[:, 0], [1, 2, 3])
    assert table.timestamps[0] == np.datetime64("2020-01-01T01")
    assert table.notes == (
        "1 missing value in column 'x' was filled (interpolate), the longest run was 1",
        "3 of 6 rows have missing values and were left out",
    )


def test_a_column_in_which_nothing_could_be_filled_is_not_said_to_be_filled() -> None:
    frame = dated(span("2020-01-01T00", 4, 1, "h"), np.array([np.nan, 1.0, 2.0, 3.0]))
    assert read_table(frame, fill="ffill", drop=True).notes == ("1 of 4 rows has missing values and was left out",)


def test_drop_leaves_out_rows_text_and_empty_columns_and_says_so(tmp_path: Path) -> None:
    lines = ["date,x,name,y,z", *(f"{s},{i % 3 if i != 4 else ''},A,,{i}" for i, s in enumerate(map(str, HOURS)))]
    lines.append("2020-02-29 02:00:00,,A,,9")
    lines.append("2020-02-29 03:00:00,8,A,,8")
    path = write(tmp_path / "a.csv", [line.replace("T", " ").replace(".000000", "") for line in lines])
    table = read_table(path, drop=True)
    assert table.columns == ["x", "z"]
    np.testing.assert_array_equal(table.values[:, 0], [0, 1, 2, 0, 8])
    assert table.notes == (
        "the column 'name' holds no numbers and was left out",
        "the column 'y' has no value and was left out",
        "1 of 6 rows has missing values and was left out",
        "windows run across 1 gap in time",
    )


def test_drop_takes_uneven_rows_as_they_are() -> None:
    stamps = span("2020-01-01T00", 7, 1, "h").astype("datetime64[us]")
    stamps[3] += np.timedelta64(7, "m")
    table = read_table(dated(stamps), drop=True)
    assert table.frequency is None
    assert len(table) == 7
    assert table.notes == ("the time stamps are irregular and the rows were taken as they are",)


def test_a_gap_that_would_double_the_table_is_refused() -> None:
    stamps = np.concatenate([span("2020-01-01T00", 5, 1, "h"), span("2021-01-01T00", 5, 1, "h")])
    with pytest.raises(ValueError, match="rows are missing for a step of h, more than the 10 that are there"):
        read_table(dated(stamps), fill="ffill")


def test_drop_of_everything_is_refused() -> None:
    values = np.array([[1.0, np.nan], [np.nan, 2.0]])
    with pytest.raises(ValueError, match="every row has a missing value, so none is left"):
        read_table(values, drop=True)
    with pytest.raises(ValueError, match="all values of all columns are missing"):
        read_table(np.full((3, 2), np.nan), drop=True)


def test_fill_and_drop_do_not_touch_a_table_without_gaps() -> None:
    table = read_table(VALUES, fill="interpolate", drop=True)
    np.testing.assert_array_equal(table.values, VALUES)
    assert table.notes == ()


def test_drop_leaves_out_a_channel_that_is_constant_in_the_train_part_and_says_so(caplog) -> None:
    values = np.random.default_rng(0).normal(size=(100, 3))
    values[:70, 1] = 2.0
    with caplog.at_level(logging.WARNING, logger="sff_fast"):
        data = ForecastData(read_table(values, drop=True), "0.7,0.1,0.2", 8, 4)
    assert data.columns == ["column_1", "column_3"]
    assert len(data.test) == 2 * 17
    note = "the channel 'column_2' is constant in the train part and was left out"
    assert note in data.describe()["notes"]
    assert caplog.text.count(note) == 1
    values[:70] = 1.0
    with pytest.raises(ValueError, match="every channel is constant in the train part"):
        ForecastData(read_table(values, drop=True), "0.7,0.1,0.2", 8, 4)


# --- the table itself -------------------------------------------------------------------------------------------------


def test_the_hash_depends_on_names_shape_and_every_value() -> None:
    table = Table(VALUES, ["x", "y"])
    changed = VALUES.copy()
    changed[3, 1] = np.nextafter(changed[3, 1], 9)
    others = [Table(changed, ["x", "y"]), Table(VALUES, ["x", "z"]), Table(VALUES.reshape(2, 4), list("abcd"))]
    assert len({table.sha256(), *(other.sha256() for other in others)}) == 4
    assert table.sha256() == Table(np.asfortranarray(VALUES), ["x", "y"], source="elsewhere").sha256()


def test_etth1_is_read_as_published(test_data: Path) -> None:
    table = read_table(test_data / "ETTh1.csv")
    assert table.values.shape == (17420, 7)
    assert table.columns == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    assert table.frequency == "h"
    assert table.notes == ()
    assert table.values[0, 0] == 5.827000141143799
    assert table.values[0, -1] == 30.5310001373291
    assert str(table.timestamps[-1]) == "2018-06-26T19:00:00.000000"


def test_ucr_files_are_read(test_data: Path) -> None:
    path = sorted((test_data / "ucr").iterdir())[0]
    table = read_table(path)
    np.testing.assert_array_equal(table.values[:, 0], np.loadtxt(path))
