"""A command in a process that notes every file that Python is about to change; see tests/test_writes.py.

``python tests/writes.py LOG COMMAND…`` runs ``sff-fast COMMAND…`` and appends one JSON line, ``[event, path]``, for each.
"""

from __future__ import annotations

import json
import os
import sys

CHANGES = {
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((1, 3),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.setxattr": ((0, None),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
"""Events by which a file changes: which of their arguments are paths, and which the folders that these are relative to."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(log: int) -> None:
    """Write a line to the descriptor ``log`` before anything changes from here on."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITING if isinstance(flags, int) else set(mode or "") & set("wax+")
            paths = [(path, -1)] if writes else []
        elif event in CHANGES:
            paths = [(arguments[place], -1 if base is None else arguments[base]) for place, base in CHANGES[event]]
        else:
            return
        for path, base in paths:
            if isinstance(path, int):
                if path <= 2:
                    continue  # standard output and error
                path = os.readlink(f"/proc/self/fd/{path}")
            folder = os.getcwd() if base == -1 else os.readlink(f"/proc/self/fd/{base}")
            os.write(log, json.dumps([event, os.path.join(folder, os.fsdecode(path))]).encode() + b"\n")

    sys.addaudithook(hook)


def main() -> int:
    """Watch the command line at work."""
    watch(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    from sff_fast.cli import main as command_line

    return command_line(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
