"""SIGTERM and ctrl-C end a run between two steps, when everything is consistent and can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from ..distributed.group import Group


class Interrupted(Exception):
    """The user or the system asked the run to stop; the work so far can be saved. It never leaves the package."""


class StopRequest:
    """Whether a stop was asked for, and which.

    Args:
        group: The processes that stop together. Default: this one alone.

    Attributes:
        signal: The number of the signal that came, or None.
    """

    def __init__(self, group: Group | None = None) -> None:
        self.group = Group() if group is None else group
        self.signal: int | None = None

    def check(self) -> None:
        """Raise Interrupted when a stop was asked for, of whichever process; every process must call at the same place."""
        if self.group.any(self.signal is not None):
            self.signal = self.signal or signal.SIGTERM
            raise Interrupted

    def leave(self) -> None:
        """End the way the signal would have: KeyboardInterrupt for ctrl-C, exit code 143 for SIGTERM."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextlib.contextmanager
def stop_requests(group: Group | None = None) -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying of them; the earlier handlers are back when the block ends.

    The request is that of all processes of the group, by default of this one alone. A second signal of the same kind has its
    usual effect at once. Outside of the main thread Python does not allow handlers, and no request ever comes.
    """
    request = StopRequest(group)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, object] = {}

    def note(number: int, frame: object) -> None:
        request.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        # What is ignored (nohup) stays ignored; a handler not installed from Python is None and could not be put back.
        if signal.getsignal(number) not in (None, signal.SIG_IGN):
            before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
