"""The parts of the report beside the table: alpha curves, differences, intervals of forecasts, the landscape."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from report_cases import (
    make_comparison,
    make_histories,
    make_landscape,
    make_metrics,
    make_run,
    make_sweep,
    make_window,
)

from sff_fast import report
from sff_fast.adapters import Forecast
from sff_fast.data import ForecastData, Table
from sff_fast.report import alphas, differences, landscapes, panels, render, rows, sweep, theme, windows
from sff_fast.report.further import named_figures
from sff_fast.training.statistics import paired_interval


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.S)).split())


def headings(html: str) -> list[str]:
    return re.findall(r"<h2 id=\"([^\"]*)\">", html)


# --- results ----------------------------------------------------------


def test_what_was_measured_beside_mse_and_mae_has_a_table_of_its_own(tmp_path):
    anomaly = {
        "rmse": 0.6,
        "rank": 1,
        "segments": 27,
        "quantile": 1 / 27,
        "auc_roc": 0.91,
        "f1_best": 0.5,
        "segment_scores": [1.0],
    }
    metrics = make_metrics([make_run("ff", 0, 0.36, metrics={"test": anomaly}), make_run("sff", 1, 0.3)])
    metrics["zero_shot"]["metrics"] = {"test": {**anomaly, "rank": 13, "f1_best": None}}
    report.write(tmp_path, metrics, make_histories(metrics))
    html = (tmp_path / "report.html").read_text()
    assert headings(html)[:3] == ["verdict", "results", "further"]
    table = words(html[html.index('<section aria-labelledby="further"') : html.index('<section aria-labelledby="comparison"')])
    assert "seed test RMSE test rank test segments test quantile test AUC-ROC test best F1" in table
    assert "zero-shot – – 0.6000 13 27 0.0370 0.9100 –" in table
    assert "FF – 0 0.6000 1 27 0.0370 0.9100 0.5000" in table
    assert "SFF chosen 0.7 1 – – – – – –" in table


def test_the_errors_of_several_rates_of_hidden_patches_stand_beside_their_mean():
    rates = {"rmse": 0.7, "mse_per_rate": {"0.25": 0.4, "0.5": 0.6}}
    one = {"mse_per_rate": {"0.25": 0.4}}
    assert named_figures(rates) == {"RMSE": 0.7, "MSE 0.25": 0.4, "MSE 0.5": 0.6}
    assert named_figures(one) == {}


# --- alpha ------------------------------------------------------------


def test_the_alpha_curve_has_means_over_seeds_with_intervals_and_the_strategies_without_alpha():
    drawn = alphas.alpha_panels(make_comparison())
    titles = ["Validation MSE by alpha", "Test MSE by alpha"]
    assert [panel.title for panel in drawn] == [name for title in titles for name in (title, f"{title}, the curve alone")]
    # 0.33 + 0.3 * (alpha - 0.7)^2 + 0.008 * (0, 1, 2): the mean is 0.008 above, the sample deviation 0.008, and the half width
    # of Student's interval of three 4.3027 * 0.008 / sqrt(3) = 0.01987.
    whole, near = drawn[2:]
    assert "alpha 0.7 0.3380 (0.3181 to 0.3579)" in whole.alt
    assert "alpha 0.3 0.3860 (0.3661 to 0.4059)" in whole.alt
    assert "Chosen: alpha 0.7. Lines: zero-shot 0.4000, FF 0.3700, TFS 0.6300." in whole.alt
    assert "Lines: zero-shot 0.4000, FF 0.3700." in near.alt
    assert all(f"var(--{role})" in render.to_svg(whole, "x") for role in ("sff", "ff", "tfs", "zero-shot"))


def test_a_line_far_above_the_curve_does_not_flatten_it():
    metrics = make_comparison()
    whole, near = alphas.alpha_panels(metrics)[2:]
    assert "var(--tfs)" in render.to_svg(whole, "x")
    assert "var(--tfs)" not in render.to_svg(near, "x")
    close = [{**run, "test_mse": 0.39} if run["strategy"] == "tfs" else run for run in metrics["runs"]]
    assert len(alphas.alpha_panels({**metrics, "runs": close})) == 3


def test_an_alpha_of_which_a_seed_diverged_is_no_point_of_the_curve():
    runs = [make_run("sff", seed, 0.3 + alpha / 10, alpha=alpha) for seed in (0, 1) for alpha in (0.5, 0.7, 0.9)]
    runs[1]["test_mse"] = None
    (_, panel) = alphas.alpha_panels(make_metrics(runs))
    assert "alpha 0.5 " in panel.alt
    assert "alpha 0.7 " not in panel.alt.partition("Chosen")[0]


def test_a_sweep_and_a_comparison_of_the_same_runs_are_the_same_drawing():
    runs = [make_run("sff", seed, 0.3 + alpha / 10 + seed / 100, alpha=alpha) for seed in (0, 1, 2) for alpha in (0.5, 0.9)]
    runs += [make_run("ff", seed, 0.37 + seed / 100) for seed in (0, 1, 2)]
    metrics = make_metrics(runs)
    values = {a: [run["val_mse"] for run in runs if run["alpha"] == a] for a in (0.5, 0.9, None)}
    found = {a: dict(zip(("val_mse_mean", "ci_low", "ci_high"), paired_interval(values[a]))) for a in values}
    points = [{"alpha": a, "groups": {}, "label": f"{a:g}", "chosen": a == 0.5, **found[a]} for a in (0.5, 0.9)]
    swept = {"points": points, "baselines": [{"strategy": "ff", **found[None]}]}
    one = alphas.alpha_panels(metrics)[0]
    other = sweep.sweep_panels({**metrics, "sweep": swept})[0]
    assert (one.title, one.alt) == (other.title, other.alt)
    assert render.to_svg(one, "x") == render.to_svg(other, "x")


def test_alphas_of_groups_are_lines_of_their_own_in_one_picture():
    metrics = make_sweep()
    for number, point in enumerate(metrics["sweep"]["points"]):
        point["groups"] = {"head": 0.5 if number < 2 else 1.0}
    svg = render.to_svg(sweep.sweep_panels(metrics)[0], "x")
    assert svg.count("SFF, head=0.5") == svg.count("SFF, head=1") > 0


@pytest.mark.parametrize("alpha", [0.7, {"head.*": 1.0, "*": 0.7}, None])
def test_there_is_no_curve_of_one_alpha_or_of_alphas_by_name(alpha):
    runs = [make_run("sff", 0, 0.3, alpha=0.7), make_run("sff", 1, 0.3, alpha=alpha), make_run("ff", 0, 0.3)]
    assert alphas.alpha_panels(make_metrics(runs)) == []


def test_validation_alone_says_which_alpha_is_preferred():
    runs = [
        make_run("sff", 0, test, alpha=a, val_mse=val) for a, val, test in ((0.5, 0.2, 0.9), (0.7, 0.3, 0.1), (0.9, None, 0.1))
    ]
    runs += [make_run("ff", 0, 0.3)]
    assert rows.preferred_alphas(make_metrics(runs)) == {"sff": "0.5"}


def test_of_several_alphas_the_preferred_one_stands_out_and_the_breakdown_shows_it_alone():
    metrics = make_comparison()
    curves = render.to_svg(panels.learning_panels(metrics, make_histories(metrics))[1], "x")
    assert "SFF 0.7" in curves
    assert "SFF, other alphas" in curves
    assert "SFF 0.3" not in curves
    for panel in panels.breakdown_panels(metrics):
        assert "SFF 0.7" in panel.alt
        assert "SFF 0.9" not in panel.alt


def test_a_sweeps_page_has_every_alpha_in_a_table_and_one_picture_of_them(tmp_path):
    metrics = make_sweep()
    report.write(tmp_path, metrics, make_histories(metrics))
    html = (tmp_path / "report.html").read_text()
    assert headings(html)[:4] == ["verdict", "results", "points", "comparison"]
    table = words(html[html.index('<section aria-labelledby="points"') : html.index('<section aria-labelledby="comparison"')])
    assert "0.7 chosen 3 0.4400 0.4300 to 0.4500" in table
    assert re.search(r"0.3 1 0.4900 – \+8.9 % 30.0 s left out after 1 seed\b", table)
    section = html[html.index('<section aria-labelledby="alphas"') : html.index('<section aria-labelledby="learning"')]
    assert "Chosen: alpha 0.7." in section
    assert not (tmp_path / "alphas.png").exists()


# --- differences ------------------------------------------------------------


def entry(a: str, b: str, difference: float, *interval: float, **more) -> dict:
    low, high = interval or (None, None)
    return {"a": a, "b": b, "metric": "test_mse", "difference": difference, "ci_low": low, "ci_high": high, "n": 3, **more}


def test_differences_are_drawn_with_their_intervals():
    entries = [entry("sff-alpha0.7", "ff", -0.03, -0.05, -0.01), entry("ff", "zero-shot", 0.02)]
    (panel,) = differences.difference_panels(make_metrics(comparisons=entries))
    assert panel.title == "Differences of the test MSE"
    assert "SFF 0.7 − FF -0.03, 95 % interval -0.05 to -0.01; FF − zero-shot 0.02." in panel.alt
    svg = render.to_svg(panel, "x")
    assert "SFF 0.7 − FF" in svg
    assert "var(--sff)" in svg


def test_with_one_seed_the_interval_over_windows_stands_in():
    entries = [entry("sff", "ff", -0.03, windows_ci_low=-0.06, windows_ci_high=0.01)]
    assert "95 % interval -0.06 to 0.01" in differences.difference_panels(make_metrics(comparisons=entries))[0].alt


def test_each_metric_that_was_compared_has_a_drawing_and_none_without_comparisons():
    entries = [entry("sff", "ff", -0.03), {**entry("sff", "ff", -0.03), "metric": "test_mae"}]
    drawn = differences.difference_panels(make_metrics(comparisons=entries))
    assert [panel.title for panel in drawn] == ["Differences of the test MSE", "Differences of the test MAE"]
    assert differences.difference_panels(make_metrics()) == []


# --- intervals of forecasts ------------------------------------------------------------


class Spread:
    """Forecasts a distribution: quantiles at chosen levels, or samples that are 0 to 100."""

    def __init__(self, levels=(), samples: bool = False) -> None:
        self.levels, self.samples = levels, samples

    def forecast(self, context, prediction_length):
        mean = torch.zeros(len(context), prediction_length, context.shape[2])
        samples = torch.arange(101.0)[None, :, None, None].expand(len(context), -1, *mean.shape[1:]) if self.samples else None
        return Forecast(mean, {level: mean + level for level in self.levels} or None, samples)


def sampled(adapter) -> windows.ForecastWindow:
    values = np.random.default_rng(0).normal(3, 2, size=(200, 1))
    return windows.sample_windows(ForecastData(Table(values, ["a"]), "0.6,0.2,0.2", 16, 4), {"sff": adapter}, count=1)[0]


def test_a_forecast_of_quantiles_has_its_interval_in_the_units_of_the_data():
    values = np.random.default_rng(0).normal(3, 2, size=(200, 1))[:120]
    window = sampled(Spread(levels=(0.1, 0.5, 0.9)))
    low, high = window.intervals["sff"]
    assert low == pytest.approx([values.mean() + 0.1 * values.std()] * 4, rel=1e-5)
    assert high == pytest.approx([values.mean() + 0.9 * values.std()] * 4, rel=1e-5)


def test_a_forecast_of_samples_has_the_interval_of_their_quantiles():
    values = np.random.default_rng(0).normal(3, 2, size=(200, 1))[:120]
    low, high = sampled(Spread(samples=True)).intervals["sff"]
    assert low == pytest.approx([values.mean() + 10 * values.std()] * 4, rel=1e-5)
    assert high == pytest.approx([values.mean() + 90 * values.std()] * 4, rel=1e-5)


@pytest.mark.parametrize("levels", [(), (0.25, 0.75), (0.1,)])
def test_a_forecast_without_those_quantiles_has_no_interval(levels):
    assert sampled(Spread(levels=levels)).intervals == {}


def test_the_interval_is_drawn_and_told():
    window = make_window(intervals={"sff": ([0.5, 1.5, 2.0, 4.2], [1.5, 2.5, 3.5, 5.0])})
    (panel,) = panels.forecast_panels([window])
    assert "The interval of SFF holds 3 of the 4 true values." in panel.alt
    assert render.to_svg(panel, "x").count("var(--sff)") > render.to_svg(panels.forecast_panels([make_window()])[0], "x").count(
        "var(--sff)"
    )


# --- landscape ------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("landscape")
    report.write_landscape(out, make_landscape(), arguments=["landscape", "--grid", "11"], facts={"plan_hash": "abc123"})
    return out


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_landscapes_page_has_verdict_table_pictures_and_provenance_in_that_order(html):
    assert headings(html) == ["verdict", "results", "contours", "surfaces", "provenance"]
    assert html.count("<svg") == 6
    text = words(html)
    assert "flattest around the smoothed weights" in text
    assert "41.2 ± 0.003" in text
    assert "−175.4 ± 21" in text
    assert "No Hessian of the ff-seed0 weights: something in the model has no second derivative: attention." in text
    assert "sff-fast landscape --grid 11" in text
    assert "version 1" in text
    assert "plan hash abc123" in text
    assert "peak memory 300 MiB" in text
    assert "torch" in text


@pytest.mark.parametrize("name", ["contours.png", "surfaces.png"])
def test_the_landscapes_pictures_show_every_centre(folder, name):
    from PIL import Image

    pixels = np.asarray(Image.open(folder / name).convert("RGB")).astype(int)
    third = pixels.shape[1] // 3
    for number, role in enumerate(("zero-shot", "sff", "ff")):
        colour = np.array([int(theme.LIGHT[role][i : i + 2], 16) for i in (1, 3, 5)])
        part = pixels[:, number * third : (number + 1) * third]
        # The fills are mixed with white and the lines antialiased: some shade on the line from white to the colour.
        away = 255 - part
        along = (away * (255 - colour)).sum(axis=2) / np.square(255 - colour).sum()
        off = np.linalg.norm(away - along[:, :, None] * (255 - colour), axis=2)
        assert ((along > 0.3) & (off < 12)).sum() > 500, role


def test_a_landscapes_drawings_follow_the_pages_colours(html):
    assert not [colour for colour in theme.PLACEHOLDERS.values() if colour in html]
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    own = [set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)) for svg in svgs]
    assert own == [set()] * 6
    assert "var(--surface)" in svgs[3]


def test_all_centres_share_one_scale_and_a_cliff_does_not_flatten_it():
    metrics = make_landscape()
    levels = landscapes._levels(metrics["landscape"]["centres"])
    assert levels[0] == min(x for c in metrics["landscape"]["centres"] for row in c["losses"] for x in row if x is not None)
    assert levels[-1] < 20
    assert levels == sorted(levels)


def test_a_flat_landscape_and_one_without_finite_losses_are_drawn_or_left_out(tmp_path):
    metrics = make_landscape()
    for centre, loss in zip(metrics["landscape"]["centres"], (1.0, 1.0, None)):
        centre["losses"] = [[loss] * 11 for _ in range(11)]
        centre["loss"], centre["rise"] = loss, None if loss is None else 0.0
        centre["lowest"] = None if loss is None else {"a": 0.0, "b": 0.0, "loss": 1.0}
    report.write_landscape(tmp_path, metrics)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 4
    assert "not finite" in words(html)


def test_a_runs_report_shows_the_landscape_that_lies_in_its_folder(tmp_path):
    metrics = make_comparison()
    report.write(tmp_path, metrics, make_histories(metrics), [make_window()])
    before = headings((tmp_path / "report.html").read_text())
    assert before == ["verdict", "results", "comparison", "alphas", "learning", "forecasts", "breakdown", "cost", "provenance"]
    (tmp_path / "landscape").mkdir()
    (tmp_path / "landscape" / "metrics.json").write_text(json.dumps(make_landscape()))
    report.write(tmp_path, metrics, make_histories(metrics), [make_window()])
    after = headings((tmp_path / "report.html").read_text())
    assert after == [*before[:-2], "contours", "surfaces", *before[-2:]]


def test_what_is_absent_is_left_out(tmp_path):
    metrics = make_metrics([make_run("sff", 0, 0.3, seconds=None, peak_bytes=None)])
    report.write(tmp_path, metrics, [[]])
    assert headings((tmp_path / "report.html").read_text()) == ["verdict", "results", "comparison", "provenance"]
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "comparison.png"}


def test_a_loss_that_is_nowhere_near_finite_still_has_words():
    metrics = make_landscape()
    centre = metrics["landscape"]["centres"][0]
    centre["loss"], centre["rise"] = None, None
    contours, _ = landscapes.panels(metrics["landscape"])
    assert "not finite at the centre" in contours[0].alt
    assert math.isfinite(centre["lowest"]["loss"])


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (["FF"], 1),
        (["FF", "SFF", "TFS", "LP", "LP-FF"], 4),
        (["TFS", "FF", "SFF, other alphas", "SFF 0.7", "zero-shot"], 3),
        (["a" * 40] * 2, 1),
    ],
)
def test_a_legend_is_as_wide_as_its_names_allow(labels, columns):
    assert panels.legend_columns(labels) == columns
