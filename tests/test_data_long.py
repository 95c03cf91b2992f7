"""Long tables become wide ones, and everything that is irregular is named before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sff_fast.data import ForecastData, read_table
from sff_fast.errors import ArgumentError, DataError

HOURS = np.datetime64("2024-01-01T00") + np.arange(6) * np.timedelta64(1, "h")
SERIES = {"north": [1.0, 2, 4, 3, 5, 6], "south": [10.0, 30, 20, 40, 60, 50]}


def rows_of(series: dict = SERIES, skip: tuple = (), header: str = "city,time,load") -> list[str]:
    lines = [
        f"{name},{str(stamp).replace('T', ' ')}:00,{value}"
        for name, values in series.items()
        for number, (stamp, value) in enumerate(zip(HOURS, values, strict=True))
        if (name, number) not in skip
    ]
    return [header, *lines]


def write(tmp_path: Path, lines: list[str], name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def check(table) -> None:
    assert table.columns == ["north", "south"]
    np.testing.assert_array_equal(table.values, np.stack([SERIES["north"], SERIES["south"]], axis=1))
    np.testing.assert_array_equal(table.timestamps, HOURS)
    assert table.frequency == "h"


@pytest.mark.parametrize("order", ["by series", "by time", "mixed"])
def test_each_series_of_a_long_table_becomes_a_channel(tmp_path: Path, order: str) -> None:
    header, *lines = rows_of()
    if order == "by time":
        lines.sort(key=lambda line: line.split(",")[1])
    elif order == "mixed":
        lines = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    table = read_table(write(tmp_path, [header, *lines]))
    check(table)
    assert table.notes == ("the table is long: its 12 rows belong to 2 series by column 'city'",)


def test_dataframes_parquet_and_csv_give_the_same_series(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.read_csv(write(tmp_path, rows_of()), parse_dates=["time"])
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, frame.set_index("time"), tmp_path / "a.parquet", frame.assign(city=frame.city.astype("category"))):
        check(read_table(source))


def test_several_values_of_a_series_become_channels_of_both_names(tmp_path: Path) -> None:
    lines = [f"{line},{number}" for number, line in enumerate(rows_of()[1:])]
    path = write(tmp_path, ["city,time,load,price", *lines])
    table = read_table(path)
    assert table.columns == ["north load", "north price", "south load", "south price"]
    np.testing.assert_array_equal(table.values[:, 1], np.arange(6))
    assert read_table(path, columns=["price"]).columns == ["north", "south"]


def test_series_with_numbers_for_names_are_found_by_the_usual_column_names(tmp_path: Path) -> None:
    lines = [line.replace("north", "7").replace("south", "12") for line in rows_of(header="unique_id,ds,y")]
    assert read_table(write(tmp_path, lines)).columns == ["12", "7"]
    other = [line.replace("unique_id", "place") for line in lines]
    # Nothing tells that these numbers are names. Series by series, "sort the rows" alone would lead nowhere.
    with pytest.raises(DataError, match=r"comes after 2024.*; time stamps repeat, so sorting alone does not help: .*--id-column"):
        read_table(write(tmp_path, other))
    with pytest.raises(DataError, match=r"occurs twice.*--id-column"):
        read_table(write(tmp_path, [other[0], *sorted(other[1:], key=lambda line: line.split(",")[1])]))
    assert read_table(write(tmp_path, other), id_column="place").columns == ["12", "7"]


def test_one_series_in_long_format_is_one_channel(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, rows_of({"north": SERIES["north"]}, header="item_id,timestamp,target")))
    assert table.columns == ["north"]


def test_a_wide_table_with_a_text_column_stays_wide(tmp_path: Path) -> None:
    lines = [f"{str(stamp).replace('T', ' ')}:00,{i % 3},ok" for i, stamp in enumerate(HOURS)]
    with pytest.raises(DataError, match="expected numbers, the column holds text"):
        read_table(write(tmp_path, ["time,x,remark", *lines]))
    lines.insert(3, lines[2])  # one repeated row makes no long table
    with pytest.raises(DataError, match="expected numbers, the column holds text"):
        read_table(write(tmp_path, ["time,x,remark", *lines]))


# --- what is irregular is named, and what is done about it is said ----------------------------------------------------


def test_a_repeated_row_of_a_series_is_named_and_with_drop_the_first_is_kept(tmp_path: Path) -> None:
    lines = rows_of()
    lines.insert(4, lines[3].replace(",4", ",99"))
    path = write(tmp_path, lines)
    message = "line 5, column 'time': the time stamp 2024-01-01 02:00 of the series 'north' occurs twice; remove"
    with pytest.raises(DataError, match=message):
        read_table(path)
    table = read_table(path, drop=True)
    check(table)
    assert "1 row repeats a time stamp of its series and was left out, such as the time stamp 2024-01-01 02:00 " in " ".join(
        table.notes
    )
    lines.insert(5, lines[3].replace(",4", ",98"))
    with pytest.raises(DataError, match=r"occurs twice, as do 1 more; remove"):
        read_table(write(tmp_path, lines))


def test_a_repeated_row_of_a_wide_table_is_named_and_with_drop_the_first_is_kept(tmp_path: Path) -> None:
    lines = [f"{str(stamp).replace('T', ' ')}:00,{i % 4}" for i, stamp in enumerate(HOURS)]
    lines.insert(2, lines[1].replace(",1", ",9"))
    path = write(tmp_path, ["time,x", *lines])
    with pytest.raises(DataError, match=r"line 4, column 'time': the time stamp 2024-01-01 01:00 occurs twice; .*--drop"):
        read_table(path)
    table = read_table(path, drop=True)
    np.testing.assert_array_equal(table.values[:, 0], [0, 1, 2, 3, 0, 1])
    assert table.frequency == "h"
    assert table.notes == ("1 row repeats a time stamp and was left out, the first in line 4 (2024-01-01 01:00)",)
    # A later problem is told by its own line in the file.
    path.write_text(path.read_text().replace("05:00,1", "05:00,inf"))
    with pytest.raises(DataError, match="line 8"):
        read_table(path, drop=True)


def test_a_gap_in_one_series_is_named_filled_or_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, rows_of(skip=(("south", 2),)))
    message = "time 2024-01-01 02:00, column 'south': the value is missing (NaN), 1 of 6 in this column"
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(path)
    filled = read_table(path, fill="interpolate")
    assert filled.values[2].tolist() == [4.0, 35.0]
    assert "1 missing value in column 'south' was filled (interpolate), the longest run was 1" in filled.notes
    dropped = read_table(path, drop=True)
    assert len(dropped) == 5
    assert "1 of 6 rows has missing values and was left out" in dropped.notes


def test_series_of_other_times_are_cut_to_what_all_have_and_short_ones_left_out_with_drop(tmp_path: Path) -> None:
    series = {**SERIES, "tiny": [1.0, 2, 3, 4, 5, 6]}
    skip = (("south", 0), *(("tiny", number) for number in range(2, 6)))
    path = write(tmp_path, rows_of(series, skip))
    with pytest.raises(DataError, match="column 'south': the column begins with 1 missing value,"):
        read_table(path, fill="ffill")
    table = read_table(path, drop=True)
    assert table.columns == ["north", "south"]
    np.testing.assert_array_equal(table.timestamps, HOURS[1:])
    notes = " | ".join(table.notes)
    assert "1 series has rows for less than half of the 6 time steps and was left out: 'tiny' (2)" in notes
    assert "1 of 6 rows has missing values and was left out" in notes


def test_series_that_have_nothing_in_common_leave_nothing_and_say_so(tmp_path: Path) -> None:
    skip = [("north", n) for n in (0, 1, 2, 3)] + [("south", n) for n in (2, 3, 4, 5)]
    three = {**SERIES, "west": SERIES["north"]}
    skip += [("west", n) for n in (0, 1, 4, 5)]
    with pytest.raises(DataError, match="none of the 3 series has rows for half of the 6 time steps"):
        read_table(write(tmp_path, rows_of(three, tuple(skip))), id_column="city", drop=True)


def test_rows_without_a_series_or_a_time_are_named(tmp_path: Path) -> None:
    lines = rows_of()
    lines[4] = lines[4].replace("north", "")
    with pytest.raises(DataError, match="line 5, column 'city': the name of the series is missing, in 1 of 12 rows"):
        read_table(write(tmp_path, lines))
    lines = rows_of()
    lines[4] = lines[4].replace("2024-01-01 03:00", "")
    with pytest.raises(DataError, match="line 5, column 'time': the time stamp is missing"):
        read_table(write(tmp_path, lines))


def test_an_id_column_that_is_not_there_or_without_times_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, rows_of())
    with pytest.raises(ArgumentError, match="has no column 'town' of series; its columns are 'city', 'time', 'load'"):
        read_table(path, id_column="town")
    with pytest.raises(DataError, match="a long table needs a column of time stamps"):
        read_table(write(tmp_path, ["city,load", "a,1", "a,2", "b,1", "b,3"]), id_column="city")


def test_time_stamps_of_several_offsets_are_converted_and_all_offsets_named(tmp_path: Path) -> None:
    stamps = ["2024-01-01T00:00+00:00", "2024-01-01T02:00+01:00", "2024-01-01T02:00Z", "2024-01-01T03:00+00:00"]
    table = read_table(write(tmp_path, ["time,x", *(f"{stamp},{i % 2}" for i, stamp in enumerate(stamps))]))
    assert table.frequency == "h"
    assert "were converted to UTC from 3 different offsets (+00:00, +01:00, UTC)" in table.notes[0]


def test_time_stamps_of_a_zone_in_a_frame_or_parquet_file_are_converted_and_the_zone_named(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    local = pandas.Series(HOURS).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    frame = pandas.DataFrame({"time": local, "x": [1.0, 2, 4, 3, 5, 6]})
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, frame.set_index("time"), tmp_path / "a.parquet"):
        table = read_table(source)
        np.testing.assert_array_equal(table.timestamps, HOURS)
        assert table.notes == ("the time stamps in column 'time' were converted to UTC from Asia/Tokyo",)
    frame["time"] = local.dt.tz_convert("UTC")
    assert read_table(frame).notes == ()


def test_an_index_that_is_no_time_is_left_out_and_named() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1.0, 2, 4]}, index=["2024-01-01", "2024-01-02", "2024-01-03"])
    (note,) = read_table(frame).notes
    assert note == "the index, such as ['2024-01-01'], holds no time stamps of pandas and was left out"
    assert read_table(frame.reset_index(drop=True)[1:]).notes == ()


def test_a_constant_series_is_named_before_training_and_left_out_with_drop(tmp_path: Path) -> None:
    long = {"flat": [1.0] * 6, **SERIES}
    path = write(tmp_path, rows_of(long))
    with pytest.raises(DataError, match=r"column 'flat': constant in the train part \(always 1 in 3 rows\)"):
        ForecastData(read_table(path), "0.6,0.2,0.2", 1, 1)
    data = ForecastData(read_table(path, drop=True), "0.6,0.2,0.2", 1, 1)
    assert data.columns == ["north", "south"]
    assert "the channel 'flat' is constant in the train part and was left out" in data.describe()["notes"]
