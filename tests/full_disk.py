"""Runs on a small tmpfs that is filled up at every call in turn: ``full_disk.py FOLDER``, in a mount namespace of its own.

Prints one line of JSON a call: what was said, what was left half-written, and what differs after the run has gone on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from killing import differences
from test_faults import broken_off, calls_of, tune
from training_fakes import make_data


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=True)
    data, out = make_data(), folder / "run"

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        yield
        os.unlink(folder / "filler")

    total = calls_of(data, folder / "whole")
    for count in range(1, total + 1):
        said = broken_off(data, out, count, full)
        left = [path.name for path in out.rglob("*") if ".sff-" in path.name]
        tune(data, out)
        print(
            json.dumps({"count": count, "said": said, "left": left, "different": differences(folder / "whole", out)}), flush=True
        )
        subprocess.run(["rm", "-r", str(out)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
