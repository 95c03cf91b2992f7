"""The report: rows, pictures and page."""

from __future__ import annotations

import itertools
import platform
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from report_cases import make_histories, make_metrics, make_run, make_window

from sff_fast import report
from sff_fast.adapters import Forecast
from sff_fast.data import ForecastData, Table
from sff_fast.errors import ArgumentError
from sff_fast.report import panels, provenance, render, rows, theme, windows

# Machado, Oliveira & Fernandes 2009, severity 1.0, for linear RGB.
COLOUR_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
STRATEGIES = ("zero-shot", "tfs", "ff", "sff", "lp", "lp-ff")


class Page(HTMLParser):
    """Collects what the tests ask about; browsers read the page the same way."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_data(self, data):
        if not self._in_style:
            self.text.append(data)

    def handle_endtag(self, tag):
        self._in_style = False

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    metrics = make_metrics()
    report.write(
        out,
        metrics,
        make_histories(metrics),
        [make_window(), make_window("<script>alert(1)</script>"), make_window(r"$\broken_{math$ & 'quotes'")],
        title='timer on <img src=x onerror="alert(1)">.csv',
        subtitle="20 steps of context",
        arguments=["compare", "--data", "my weather.csv"],
        facts={"plan_hash": "abc123"},
    )
    return out


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(html):
    return Page(html)


# --- rows ------------------------------------------------------------


def test_the_first_row_is_the_zero_shot_model_and_every_run_follows():
    table = rows.result_rows(make_metrics())
    assert [row.strategy for row in table] == ["zero-shot", "tfs", "ff", "sff", "tfs", "ff", "sff"]


def test_the_cells_of_a_run_say_what_metrics_json_holds():
    row = next(row for row in rows.result_rows(make_metrics()) if row.strategy == "sff" and row.seed == 0)
    assert dict(zip(rows.COLUMNS, row.cells(), strict=True)) == {
        "strategy": "SFF",
        "alpha": "0.7",
        "seed": "0",
        "best epoch": "2",
        "val MSE": "0.4300",
        "test MSE": "0.3300",
        "vs zero-shot": "−17.5 %",
        "test MAE": "0.4000",
        "time": "1 min 15 s",
        "peak memory": "300 MiB",
    }


def test_validation_chooses_the_strategy_by_its_mean_and_not_the_luckiest_run():
    runs = [make_run("ff", 0, 0.1, val_mse=0.2), make_run("ff", 1, 0.1, val_mse=0.9)]
    runs += [make_run("sff", 0, 0.1, val_mse=0.31), make_run("sff", 1, 0.1, val_mse=0.3)]
    assert rows.best_run(make_metrics(runs)) == 3


def test_a_run_that_diverged_has_empty_cells_and_is_never_chosen():
    runs = [make_run("ff", 0, None, test_mae=None), make_run("sff", 0, 0.5)]
    metrics = make_metrics(runs)
    diverged = rows.result_rows(metrics)[1]
    assert diverged.cells()[4:8] == ["", "", "", ""]
    assert rows.best_run(metrics) == 1
    assert [group.strategy for group in rows.groups(metrics)] == ["sff"]


def test_groups_hold_mean_and_sample_standard_deviation_over_seeds():
    group = next(group for group in rows.groups(make_metrics()) if group.strategy == "tfs")
    assert group.mean == pytest.approx(0.62)
    assert group.spread == pytest.approx(0.02 / 2**0.5)


def test_two_alphas_of_one_strategy_are_two_groups_with_alpha_in_their_names():
    runs = [make_run("sff", 0, 0.3, alpha=0.5), make_run("sff", 0, 0.4, alpha=0.9), make_run("ff", 0, 0.4)]
    assert [group.label for group in rows.groups(make_metrics(runs))] == ["SFF 0.5", "SFF 0.9", "FF"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.36284, "0.3628"), (0.0, "0.0000"), (0.001234, "1.234e-03"), (float("nan"), "nan"), (None, "")],
)
def test_errors_keep_four_figures(value, text):
    assert rows.format_error(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.13, "8.1 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.6, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_durations_never_show_sixty_seconds(seconds, text):
    assert theme.format_seconds(seconds) == text


# --- colours ------------------------------------------------------------


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


def lab(rgb: np.ndarray) -> np.ndarray:
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_every_colour_stands_out_from_its_background(palette):
    for role, colour in palette.items():
        if role in ("surface", "grid"):
            continue
        high, low = sorted((luminance(colour), luminance(palette["surface"])), reverse=True)
        # WCAG 2.2: 4.5 for text, 3 for graphics.
        assert (high + 0.05) / (low + 0.05) >= (4.5 if role in ("ink", "muted") else 3.0), role


@pytest.mark.parametrize("vision", COLOUR_VISION)
@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_strategies_stay_apart_for_every_colour_vision(palette, vision):
    seen = {name: lab(np.array(COLOUR_VISION[vision]) @ linear(palette[name])) for name in STRATEGIES}
    for first, second in itertools.combinations(STRATEGIES, 2):
        # CIE 1976: about 2.3 is just noticeable side by side; thin lines apart from each other need several times that.
        assert np.linalg.norm(seen[first] - seen[second]) > 12, (first, second)


def test_strategies_differ_in_marker_and_line_too():
    assert len({theme.style(name).marker for name in STRATEGIES}) == len(STRATEGIES)
    assert len({theme.style(name).linestyle for name in STRATEGIES}) == len(STRATEGIES)


def test_light_and_dark_have_the_same_roles_and_an_unknown_strategy_gets_one_of_them():
    assert set(theme.LIGHT) == set(theme.DARK) == set(theme.PLACEHOLDERS)
    assert theme.style("mixout").role in theme.LIGHT
    assert theme.style("mixout") == theme.style("mixout")


# --- pictures ------------------------------------------------------------


@pytest.mark.parametrize("name", ["comparison.png", "learning_curves.png", "forecasts.png"])
def test_pictures_are_written_and_show_something(folder, name):
    from PIL import Image

    pixels = np.asarray(Image.open(folder / name).convert("RGB"))
    assert pixels.shape[1] > 1000
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    strategy_colours = [tuple(int(theme.LIGHT[role][i : i + 2], 16) for i in (1, 3, 5)) for role in ("zero-shot", "sff")]
    wanted = strategy_colours if name != "comparison.png" else []
    for colour in wanted:
        assert (pixels == colour).all(axis=2).sum() > 50, colour
    assert (pixels < 128).any()


def test_a_drawing_uses_the_colours_of_the_page_and_has_an_accessible_name():
    svg = render.to_svg(panels.comparison_panels(make_metrics())[0], "errors")
    assert 'role="img"' in svg
    label = re.search(r'aria-label="([^"]*)"', svg)[1]
    assert "zero-shot 0.4000" in label
    assert "TFS 0.6200 plus or minus 0.0141" in label
    assert "var(--sff)" in svg
    assert not [colour for colour in theme.PLACEHOLDERS.values() if colour in svg]


def test_the_error_panel_writes_the_change_against_zero_shot():
    svg = render.to_svg(panels.comparison_panels(make_metrics())[0], "errors")
    assert "0.3350 (−16.2 %)" in svg


def test_the_same_input_gives_the_same_drawing():
    panel = panels.learning_panels(make_metrics(), make_histories(make_metrics()))[1]
    assert render.to_svg(panel, "a") == render.to_svg(panel, "a")


def test_training_from_scratch_does_not_flatten_the_other_curves():
    runs = [make_run("tfs", 0, 9.0), make_run("ff", 0, 0.35)]
    metrics = make_metrics(runs)
    titles = [panel.title for panel in panels.learning_panels(metrics, make_histories(metrics))]
    assert titles == ["Training loss", "Validation MSE", "Validation MSE without TFS"]


def test_errors_by_step_and_channel_are_drawn_where_the_metrics_hold_them():
    detail = {"test": {"mse_per_horizon": [0.1, 0.2, 0.3], "mse_per_channel": [0.1, 0.3]}}
    metrics = make_metrics([make_run("sff", 0, 0.2, metrics=detail)])
    metrics["zero_shot"]["metrics"] = detail
    drawn = panels.breakdown_panels(metrics)
    assert [panel.title for panel in drawn] == ["Test error by step", "Test error by channel"]
    assert "SFF from 0.1000 at the first to 0.3000 at the last step" in drawn[0].alt
    assert "humid zero-shot 0.3000" in drawn[1].alt
    assert panels.breakdown_panels(make_metrics()) == []


# --- page ------------------------------------------------------------


def test_the_page_is_one_file_without_script_or_network(parsed, html):
    assert not parsed.all("script")
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
    assert "url(http" not in html
    assert "@import" not in html
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in parsed.all("meta"))


def test_names_from_outside_are_text_on_the_page(parsed, html):
    assert "<script" not in html.lower()
    assert not parsed.all("img")
    assert '<img src=x onerror="alert(1)">.csv' in parsed.words
    assert "<script>alert(1)</scr" in parsed.words
    assert r"$\broken_{math$ & 'qu" in parsed.words


def test_the_verdict_comes_first_and_provenance_last(parsed):
    headings = re.findall(r"Verdict|Results|By strategy|Learning curves|Forecasts on the test part|Provenance", parsed.words)
    assert headings == [
        "Verdict",
        "Results",
        "By strategy",
        "Learning curves",
        "Forecasts on the test part",
        "Provenance",
    ]
    assert "Ship sff (alpha 0.7), seed 0." in parsed.words


def test_the_table_has_headers_for_columns_and_rows(parsed):
    scopes = [attributes.get("scope") for attributes in parsed.all("th")]
    assert scopes.count("col") == len(rows.COLUMNS)
    assert scopes.count("row") == 7


def test_only_the_chosen_run_is_marked(parsed):
    assert [row.get("class") for row in parsed.all("tr")].count("tagged") == 1


def test_ids_are_unique_and_references_lead_somewhere(parsed):
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in parsed.tags:
        for name in ("href", "clip-path", "aria-labelledby", "aria-describedby"):
            if name in attributes and not attributes[name].startswith("data:"):
                target = attributes[name].removeprefix("url(").removesuffix(")").removeprefix("#")
                assert target in ids, (name, target)


def test_every_drawing_has_a_description_and_a_caption(parsed):
    drawings = parsed.all("svg")
    assert len(drawings) == len(parsed.all("figcaption")) == 3 + 2 + 3
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 40 for drawing in drawings)


def test_the_page_follows_the_dark_mode_and_the_width_of_the_screen(parsed, html):
    assert "prefers-color-scheme: dark" in html
    assert any(meta.get("name") == "viewport" for meta in parsed.all("meta"))
    for role in theme.LIGHT:
        assert f"--{role}: {theme.LIGHT[role]};" in html
        assert f"--{role}: {theme.DARK[role]};" in html


def test_provenance_names_the_packages_that_were_used_and_no_others(monkeypatch):
    for module in set(provenance.PACKAGES) - {"torch", "numpy"}:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "scipy", object())
    monkeypatch.setitem(sys.modules, "tsfm_public", object())
    monkeypatch.setattr(
        provenance.metadata, "version", {"torch": "1", "numpy": "2", "scipy": "3", "granite-tsfm": "4"}.__getitem__
    )
    assert provenance.package_versions() == {
        "python": platform.python_version(),
        **{"torch": "1", "numpy": "2", "granite-tsfm": "4", "scipy": "3"},
    }


def test_provenance_repeats_the_command_and_names_versions(parsed):
    assert "sff-fast compare --data 'my weather.csv'" in parsed.words
    for fact in ("plan hash abc123", "random stream version 1", "seeds 0, 1", f"torch {torch.__version__}"):
        assert fact in parsed.words
    assert "setting: lr 3e-05 setting: runs sff 0.7, ff " in parsed.words
    assert "scaler" not in parsed.words
    assert "max steps" not in parsed.words


def test_a_report_without_runs_shows_the_zero_shot_model_alone(tmp_path):
    written = report.write(tmp_path, make_metrics([]), [], [make_window(predictions={"zero-shot": [1.0] * 4})])
    assert sorted(path.name for path in written) == ["comparison.png", "forecasts.png", "report.html"]
    assert "zero-shot" in Page((tmp_path / "report.html").read_text()).words


def test_histories_must_match_the_runs(tmp_path):
    with pytest.raises(ArgumentError, match="6 runs, 1 histories"):
        report.write(tmp_path, make_metrics(), [[]])
    assert not list(tmp_path.iterdir())


def test_long_and_unprintable_names_are_made_short_and_printable():
    assert panels.shorten("a" * 50, 10) == "a" * 9 + "…"
    assert panels.shorten("a\x1b[2Jb", 10) == "a�[2Jb"


def test_a_channel_with_control_characters_or_a_lone_surrogate_does_not_break_the_page(tmp_path):
    metrics = make_metrics()
    written = report.write(tmp_path, metrics, make_histories(metrics), [make_window("a\x00\x1b\ud800b")])
    assert written[0].read_bytes().count(b"\x00") == 0


def test_the_command_line_is_quoted_for_a_shell():
    assert provenance.command_line(["plan", "--factory", "a b:c"]) == "sff-fast plan --factory 'a b:c'"


# --- windows ------------------------------------------------------------


class LastValue:
    """Forecasts the last value of the context, so that what comes out can be told from the table."""

    def forecast(self, context, prediction_length):
        return Forecast(context[:, -1:, :].expand(-1, prediction_length, -1))


@pytest.mark.parametrize("channel_independent", [True, False])
def test_sampled_windows_are_in_the_units_of_the_data(channel_independent):
    steps = np.arange(400.0)
    values = np.stack([1000 + steps, 5 - 0.01 * steps**1.1, 70 + 10 * np.sin(steps / 5)], axis=1)
    stamps = np.datetime64("2020-01-01T00:00", "us") + np.arange(400) * np.timedelta64(3600, "s")
    table = Table(values, ["a", "b", "c"], stamps, "h", "made")
    data = ForecastData(table, "0.6,0.2,0.2", 24, 8, channel_independent=channel_independent)
    sampled = windows.sample_windows(data, {"zero-shot": LastValue()}, count=4)
    assert [window.channel for window in sampled] == ["a", "b", "c", "a"]
    column = {"a": 0, "b": 1, "c": 2}
    for window in sampled:
        row = int((np.datetime64(window.start) - stamps[0]) / np.timedelta64(1, "h"))
        assert row >= data.borders.test[0] + 24
        assert window.truth == values[row : row + 8, column[window.channel]].tolist()
        assert window.context == values[row - 24 : row, column[window.channel]].tolist()
        # float32 standardised values: seven digits of the spread.
        expected = pytest.approx([window.context[-1]] * 8, abs=1e-5 * values[:, column[window.channel]].std() * 10)
        assert window.predictions["zero-shot"] == expected
        assert window.step == "1 h"
    assert len({window.start for window in sampled}) == 4


def test_the_windows_that_are_shown_do_not_fall_into_the_pattern_of_the_columns():
    columns = [f"{place}_{quantity}" for place in "abc" for quantity in ("temp", "dew", "humid", "wind", "hpa", "vis")]
    table = Table(np.random.default_rng(0).normal(size=(400, 18)), columns)
    sampled = windows.sample_windows(ForecastData(table, "0.6,0.2,0.2", 24, 8), {"zero-shot": LastValue()}, count=6)
    assert len({window.channel.split("_")[1] for window in sampled}) == 6
    assert len({window.channel.split("_")[0] for window in sampled}) == 3


def test_no_more_windows_are_shown_than_there_are():
    table = Table(np.random.default_rng(0).normal(size=(100, 1)), ["a"])
    data = ForecastData(table, "0.6,0.2,0.2", 16, 20)
    sampled = windows.sample_windows(data, {"zero-shot": LastValue()})
    assert [window.start for window in sampled] == ["row 81"]


@pytest.mark.parametrize(
    ("frequency", "text"),
    [("h", "1 h"), ("15min", "15 min"), ("D", "1 day"), ("7D", "7 days"), ("B", "1 working day"), (None, "")],
)
def test_the_step_between_rows_is_said_in_words(frequency, text):
    assert windows.step_text(frequency) == text
