"""What the exit codes of ``sff-fast`` mean; docs/cli.md has the same table."""

from __future__ import annotations

import signal

DONE = 0
BUG = 1
"""Python's own for a traceback."""

USER_ERROR = 2
"""Something that the user can mend; one line on standard error says what."""

NOT_FINITE = 3
"""All is done and written, but a run stopped early, at a loss or a forecast that was not finite."""

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
