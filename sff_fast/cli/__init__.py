"""The command line, ``sff-fast``. Importing this module needs neither click nor torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sff_fast.errors import MissingPackageError, require


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default that of this process.

    Returns:
        The exit code: 0 success, 2 something that the user can mend (one line on stderr, nothing written),
        3 done, but a run stopped at a loss that was not finite, 130 after ctrl-C, 143 after SIGTERM. A bug ends with its
        traceback and exit code 1.
    """
    try:
        for module in ("click", "rich"):
            require(module, "cli")
    except MissingPackageError as error:
        print(f"sff-fast: error: {error}", file=sys.stderr)
        return 2
    from sff_fast.cli.app import run

    return run(arguments)
