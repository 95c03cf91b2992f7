"""Runs the exhaustive tests and writes what they found to ``docs/exhaustive.md``, with date, machine and command.

Run from the repository root: ``make test-exhaustive``, or ``python tools/exhaustive.py``; half an hour to an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from timing import machine  # noqa: E402

PAGE = ROOT / "docs" / "exhaustive.md"
HEAD = """# Exhaustive tests of the CPU kernels

Written by `{command}` (whole: `make test-exhaustive`): every input word of each transform, 10^8 elements of
every distribution and dtype against the reference backend, distribution tests at 10^8 draws.

| | |
|---|---|
| date | {date} UTC |
| machine | {cpu}, {cores} cores |
| versions | sff_fast {sff_fast}, random stream {stream}, torch {torch}, numpy {numpy}, Python {python} |
| outcome | {outcome} |

| test | outcome | seconds | result |
|---|---|---|---|
"""


class Collector:
    """A pytest plugin: one row a test."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float, str]] = []
        self.selected = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """How many tests there are to run."""
        self.selected = len(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome and what the test recorded as its result."""
        if report.when == "call" or report.outcome != "passed":
            result = dict(report.user_properties).get("result", "")
            name = report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " ", report.nodeid.split("[")[0].count("_"))
            self.rows.append((name, report.outcome, report.duration, result))


def page(collector: Collector, seconds: float, command: str, expression: str) -> str:
    """The page as Markdown; a run of a part, or one that did not finish, says so."""
    from sff_fast.stream import STREAM_VERSION

    here = machine()
    passed = sum(row[1] == "passed" for row in collector.rows)
    outcome = f"{passed} of {collector.selected} tests passed in {seconds / 60:.0f} minutes"
    if len(collector.rows) < collector.selected:
        outcome += f"; **interrupted: {collector.selected - len(collector.rows)} tests have not run**"
    if expression:
        outcome += "; **a part of the tests only: the rest has not run**"
    head = HEAD.format(
        command=command,
        **here,
        stream=STREAM_VERSION,
        outcome=outcome,
    )
    return head + "".join(f"| {name} | {how} | {took:.1f} | {result} |\n" for name, how, took, result in collector.rows)


def main() -> int:
    """Run, write, and return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("-k", dest="expression", default="", help="only tests that match, as pytest's -k")
    parser.add_argument("--output", type=Path, default=PAGE, help="where to write, default docs/exhaustive.md")
    options = parser.parse_args()
    os.chdir(ROOT)
    collector, begin = Collector(), time.monotonic()
    arguments = ["tests/test_exhaustive.py", "-m", "exhaustive", "-q", "-p", "no:cacheprovider"]
    code = pytest.main([*arguments, *(["-k", options.expression] if options.expression else [])], plugins=[collector])
    command = "python tools/exhaustive.py" + (f" -k '{options.expression}'" if options.expression else "")
    options.output.write_text(page(collector, time.monotonic() - begin, command, options.expression))
    print(f"written to {options.output}")
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
