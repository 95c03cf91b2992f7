"""The report in a real browser: phone and desktop, light and dark. Nothing is fetched, nothing sticks out, all can be read."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
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
from sff_fast.cli import main

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
PATIENCE = 300_000
"""Milliseconds until a browser that does not come up counts as broken, on however busy a machine."""
PAGES = ("finetune", "compare", "sweep", "landscape", "imputation", "anomaly")

STICKING_OUT = """() => [...document.querySelectorAll('main *')]
    .filter(e => !e.closest('.scroll table') && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.tagName + '.' + e.className)"""
CUT_OFF = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
        const inner = text.getBoundingClientRect();
        return Math.max(box.left - inner.left, inner.right - box.right, box.top - inner.top, inner.bottom - box.bottom) > 4;
    }).map(text => svg.getAttribute('aria-label').slice(0, 60) + ': ' + text.textContent);
})"""
COLOURS = """() => {
    const behind = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
    const drawn = [...document.querySelectorAll('svg text')].map(e => [e.textContent, getComputedStyle(e).fill, behind(e)]);
    const written = [...document.querySelectorAll('h1, h2, p, th, td, dt, dd, pre, figcaption')]
        .map(e => [e.textContent.slice(0, 30), getComputedStyle(e).color, behind(e)]);
    return [...drawn, ...written];
}"""


@pytest.fixture(scope="module")
def browser():
    """A headless browser of the system's, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make browser-driver`")
    path = os.environ.get("SFF_FAST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None and os.environ.get("SFF_FAST_NO_BROWSER") == "1":
        pytest.skip("needs hardware: a machine with a browser, or whose package manager has one")
    if path is None:
        pytest.skip(f"no browser on the PATH ({', '.join(NAMES)}): `apt-get install chromium`, or name one in SFF_FAST_BROWSER")
    options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=options, timeout=PATIENCE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of each kind, with a channel of the longest kind of name and a command line that has to be broken."""
    out = tmp_path_factory.mktemp("pages")
    for name in PAGES:
        (out / name).mkdir()
    spread = {"sff": ([0.5, 1.5, 2.0, 4.0], [1.5, 2.5, 3.5, 5.0])}
    shown = [make_window(intervals=spread), make_window("a_channel_with_a_name_that_is_far_too_long_for_a_phone" * 2)]
    command = ["compare", "--data", "/a/folder/with/a/long/name/" * 6 + "weather.csv", "--family", "timer"]
    finetune = make_metrics([make_run("sff", 0, 0.3)])
    facts = {"plan_hash": "0123456789abcdef" * 4}
    options = {"title": "timer on weather.csv: fine-tuning", "subtitle": "96 steps of context", "facts": facts}
    report.write(out / "finetune", finetune, make_histories(finetune), shown[:1], arguments=["finetune"], **options)
    compare, sweep = make_comparison(), make_sweep()
    (out / "compare" / "landscape").mkdir()
    (out / "compare" / "landscape" / "metrics.json").write_text(json.dumps(make_landscape()))
    report.write(out / "compare", compare, make_histories(compare), shown, arguments=command, **options)
    report.write(out / "sweep", sweep, make_histories(sweep), shown, arguments=["sweep"], **options)
    report.write_landscape(out / "landscape", make_landscape(21), arguments=["landscape", *command[1:]], facts=facts)
    waves = np.stack([np.sin(np.arange(600) / 7), np.cos(np.arange(600) / 11)], axis=1)
    np.savetxt(out / "waves.csv", waves, delimiter=",", header="a,a_channel_with_a_name_that_is_long", comments="")
    spike = np.sin(np.arange(1200) * 2 * np.pi / 48) + 3 * ((np.arange(1200) // 10) == 90)
    np.savetxt(out / "002_UCR_Anomaly_spike_700_901_910.txt", spike)
    tune("imputation", out / "waves.csv", out / "imputation", "--stride", "40", "--mask-rate", "0.125,0.5")
    tune("anomaly", out / "002_UCR_Anomaly_spike_700_901_910.txt", out / "anomaly", "--context-length", "288")
    return out


def tune(task: str, data: Path, out: Path, *options: str) -> None:
    """Two steps of the tiny Timer for a task, for the report that the command writes."""
    model = ("--family", "timer", "--tiny", "--task", task, "--data", str(data))
    steps = ("--strategy", "ff", "--epochs", "1", "--max-steps", "2", "--device", "cpu", "--quiet")
    assert main(["finetune", *model, *steps, *options, "--out", str(out)]) == 0


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module", params=PAGES)
def opened(request, browser, folder, size, scheme):
    """The page, with what it asked for and complained about; scripts of the test run, the page's own may not."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.requests, page.complaints = [], []
    page.on("request", lambda asked: page.requests.append(asked.url))
    page.on("console", lambda message: page.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto((folder / request.param / "report.html").as_uri(), wait_until="load", timeout=PATIENCE)
    yield page
    context.close()


def test_a_page_asks_for_nothing_complains_of_nothing_and_scrolls_down_only(opened):
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.url]
    assert opened.complaints == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.evaluate("innerWidth")
    assert opened.evaluate(STICKING_OUT) == []
    assert opened.evaluate("document.querySelectorAll('svg').length") >= 4


def test_no_label_of_a_drawing_is_cut_off(opened):
    assert opened.evaluate(CUT_OFF) == []


def test_every_word_stands_out_from_what_is_behind_it(opened):
    faint = []
    for text, front, back in opened.evaluate(COLOURS):
        if text.strip():
            high, low = sorted((luminance(front), luminance(back)), reverse=True)
            if (high + 0.05) / (low + 0.05) < 4.5:  # WCAG 2.2, AA
                faint.append((text, front, back))
    assert faint == []


def test_the_page_is_dark_where_the_reader_wants_that(opened, scheme):
    behind = luminance(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (behind < 0.05) == (scheme == "dark")


def test_the_verdict_is_on_the_first_screen(opened, size):
    assert opened.evaluate("document.querySelector('.verdict p').getBoundingClientRect().top") < SIZES[size][1] / 2


def luminance(colour: str) -> float:
    """Of a colour as browsers compute it: ``rgb(1, 2, 3)``, or ``color(srgb 0.1 0.2 0.3)`` of a mixture."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    channels = numbers if colour.startswith("color(") else [number / 255 for number in numbers]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
