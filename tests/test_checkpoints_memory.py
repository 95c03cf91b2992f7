"""Memory does not grow with the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_CHILD = """
import json, sys, torch
import sff_fast
from sff_fast.checkpoints import smooth_checkpoint

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

plan = sff_fast.trace(lambda: torch.nn.Linear(8192, int(sys.argv[2]), bias=False))
before = status("VmHWM:")
smooth_checkpoint(sys.argv[1], sys.argv[3] or None, plan, threads=2, in_place=not sys.argv[3])
print(json.dumps(status("VmHWM:") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs hardware: the peak is read from /proc")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_tensor_larger_than_the_bound_takes_no_more_memory_than_it(tmp_path, in_place):
    rows = 12_288  # 403 MB
    header = {"weight": {"dtype": "F32", "shape": [rows, 8192], "data_offsets": [0, rows * 8192 * 4]}}
    encoded = json.dumps(header).encode()
    with (tmp_path / "in.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + rows * 8192 * 4)
    target = "" if in_place else str(tmp_path / "out.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "in.safetensors"), str(rows), target],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) <= 256 << 20
