"""Runs the exhaustive tests and writes what they found to ``docs/exhaustive.md``, with date, machine and command.

Run from the repository root: ``make test-exhaustive``, or ``python tools/exhaustive.py``; half an hour to an hour on two cores.
Tests that have passed with the same sources are not run again, so that a run which was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from timing import machine  # noqa: E402

PAGE = ROOT / "docs" / "exhaustive.md"
KEPT = ROOT / "build" / "exhaustive"
SOURCES = (
    *(f"csrc/core/{name}.h" for name in ("config", "distributions", "dtypes", "philox", "scalar", "task")),
    *(f"csrc/cpu/{name}" for name in ("dispatch.cpp", "float_environment.h", "kernel.h", "lanes*.h", "parallel.*", "smooth*")),
    "sff_fast/backends/reference.py",
    "tests/kernel_cases.py",
    "tests/test_exhaustive.py",
)
"""What the results depend on, the optimizer left out."""
HEAD = """# Exhaustive tests of the CPU kernels

Written by `python tools/exhaustive.py` (`make test-exhaustive`): every input word of each transform, 10^8 elements of every
distribution and dtype against the reference backend, distribution tests at 10^8 draws. `--check` says whether the sources
below are those of this checkout.

| | |
|---|---|
| date | {date} UTC |
| machine | {cpu}, {cores} cores |
| versions | sff_fast {sff_fast}, random stream {stream}, torch {torch}, numpy {numpy}, Python {python} |
| sources | {sources} |
| outcome | {outcome} |

| test | outcome | seconds | result |
|---|---|---|---|
"""


def sources_hash() -> str:
    """Content hash of :data:`SOURCES`."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


class Collector:
    """A pytest plugin: leaves out what has passed with these sources, and keeps a row a test as soon as it has ended.

    Args:
        kept: The file of the rows.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.rows: dict[str, dict] = json.loads(kept.read_text()) if kept.exists() else {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect what needs not run."""
        done = [item for item in items if self.rows.get(item.nodeid, {}).get("outcome") == "passed"]
        items[:] = [item for item in items if item not in done]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome and what the test recorded as its result."""
        if report.when == "call" or report.outcome != "passed":
            result = dict(report.user_properties).get("result", "")
            self.rows[report.nodeid] = {"outcome": report.outcome, "seconds": report.duration, "result": result}
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            self.kept.write_text(json.dumps(self.rows))


class Names:
    """A pytest plugin that only lists the tests."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The tests that there are."""
        self.names = [item.nodeid for item in session.items]


def page(rows: dict[str, dict], names: list[str], sources: str) -> str:
    """The page as Markdown: what has run of all tests, in their order; what has not run is said."""
    from sff_fast.stream import STREAM_VERSION

    done = [name for name in names if name in rows]
    passed = sum(rows[name]["outcome"] == "passed" for name in done)
    minutes = sum(rows[name]["seconds"] for name in done) / 60
    outcome = f"{passed} of {len(names)} tests passed in {minutes:.0f} minutes"
    if len(done) < len(names):
        outcome += f"; **{len(names) - len(done)} have not run**"
    head = HEAD.format(**machine(), stream=STREAM_VERSION, sources=sources, outcome=outcome)
    lines = []
    for name in done:
        label = name.split("::")[-1]
        label = label.split("[")[0].removeprefix("test_").replace("_", " ") + label[len(label.split("[")[0]) :]
        row = rows[name]
        lines.append(f"| {label} | {row['outcome']} | {row['seconds']:.1f} | {row['result']} |\n")
    return head + "".join(lines)


def main() -> int:
    """Run, write, and return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("-k", dest="expression", default="", help="only tests that match, as pytest's -k")
    parser.add_argument("--again", action="store_true", help="run also what has passed with these sources")
    parser.add_argument("--check", action="store_true", help="only say whether the page belongs to these sources")
    parser.add_argument("--output", type=Path, default=PAGE, help="where to write, default docs/exhaustive.md")
    options = parser.parse_args()
    os.chdir(ROOT)
    sources = sources_hash()
    if options.check:
        holds = options.output.exists() and f"| sources | {sources} |" in options.output.read_text()
        print(f"{options.output} {'belongs' if holds else 'does not belong'} to these sources ({sources})")
        return 0 if holds else 1
    kept = KEPT / f"{sources}.json"
    if options.again:
        kept.unlink(missing_ok=True)
    collector, names, begin = Collector(kept), Names(), time.monotonic()
    arguments = ["tests/test_exhaustive.py", "-m", "exhaustive", "-q", "-p", "no:cacheprovider"]
    pytest.main([*arguments, "--collect-only", "-qq"], plugins=[names])
    code = pytest.main([*arguments, *(["-k", options.expression] if options.expression else [])], plugins=[collector])
    options.output.write_text(page(collector.rows, names.names, sources))
    print(f"written to {options.output} after {(time.monotonic() - begin) / 60:.0f} minutes")
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)


if __name__ == "__main__":
    raise SystemExit(main())
