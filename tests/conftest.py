"""Fixtures that every test file may use, and the account of skipped tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

HARDWARE = "needs hardware: "
"""Skips with this reason are no fault of the set-up; with SFF_FAST_STRICT_SKIPS every other skip fails the run."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts pytest in the background has it ignore ctrl-C, and all that pytest starts: tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one thread, so that small models leave the machine's other cores alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data and checkpoints that SFF_FAST_TEST_DATA names."""
    folder = os.environ.get("SFF_FAST_TEST_DATA")
    if not folder:
        pytest.skip("SFF_FAST_TEST_DATA is not set: it names the folder with ETTh1.csv and the test checkpoints")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"SFF_FAST_TEST_DATA={folder!r} is not a folder")
    return path


def _avoidable(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reasons = [str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])] if reporter else []
    return [reason for reason in reasons if not reason.removeprefix("Skipped: ").startswith(HARDWARE)]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("SFF_FAST_STRICT_SKIPS") == "1" and exitstatus == 0 and _avoidable(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    avoidable = _avoidable(terminalreporter.config)
    terminalreporter.write_line(f"skipped: {len(skipped)}, of which set-up could have prevented {len(avoidable)}")
