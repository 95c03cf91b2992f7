"""Runs the exhaustive tests and writes what they found to ``docs/exhaustive.md``, with date, machine and command.

Run from the repository root: ``make test-exhaustive``, or ``python tools/exhaustive.py``; half an hour to an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "exhaustive.md"
HEAD = """# Exhaustive tests of the CPU kernels

Written by `make test-exhaustive` (`{command}`): every input word of each transform, 10^8 elements of every distribution and
dtype against the reference backend, distribution tests at 10^8 draws.

| | |
|---|---|
| date | {date} |
| machine | {cpu}, {cores} cores |
| versions | sff_fast {version}, random stream {stream}, torch {torch}, numpy {numpy}, Python {python} |
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


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def page(collector: Collector, seconds: float, command: str) -> str:
    """The page as Markdown; a run that did not finish says so."""
    import sff_fast
    from sff_fast.stream import STREAM_VERSION

    passed = sum(row[1] == "passed" for row in collector.rows)
    outcome = f"{passed} of {collector.selected} tests passed in {seconds / 60:.0f} minutes"
    if len(collector.rows) < collector.selected:
        outcome += f"; **interrupted: {collector.selected - len(collector.rows)} tests have not run**"
    head = HEAD.format(
        command=command,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=cpu_name(),
        cores=os.cpu_count(),
        version=sff_fast.__version__,
        stream=STREAM_VERSION,
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
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
    sys.path.insert(0, str(ROOT))
    collector, begin = Collector(), time.monotonic()
    arguments = ["tests/test_exhaustive.py", "-m", "exhaustive", "-q", "-p", "no:cacheprovider"]
    code = pytest.main([*arguments, *(["-k", options.expression] if options.expression else [])], plugins=[collector])
    command = "python tools/exhaustive.py" + (f" -k '{options.expression}'" if options.expression else "")
    options.output.write_text(page(collector, time.monotonic() - begin, command))
    print(f"written to {options.output}")
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
