"""Pages of mapped checkpoints are copied beforehand, and nothing but the time changes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sff_fast
from sff_fast import mapped

ELEMENTS = mapped.POPULATE_FROM // 4 + 12_345


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", Path("/proc/sys/kernel/osrelease").read_text())[:2])


linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or kernel() < (5, 14), reason="needs hardware: Linux 5.14 or later"
)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.arange(ELEMENTS, dtype=torch.float32), "b.weight": torch.ones(7, 3)}, path)
    return path


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Module(), nn.Module()
        self.a.weight, self.b.weight = nn.Parameter(torch.zeros(ELEMENTS)), nn.Parameter(torch.zeros(7, 3))


def own_pages(tensor: torch.Tensor) -> int:
    """Bytes of the mapping in which a tensor begins that this process has copies of."""
    inside, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        addresses = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if addresses:
            begin, end = (int(part, 16) for part in addresses.groups())
            inside = begin <= tensor.data_ptr() < end
        elif inside and line.startswith(("Private_Dirty:", "Anonymous:")):
            found = max(found, int(line.split()[1]) << 10)
    return found


@linux
@pytest.mark.parametrize("threads", [1, 2])
def test_all_pages_are_there_before_the_first_write(checkpoint, threads):
    weights = load_file(checkpoint)
    before = own_pages(weights["a.weight"])
    assert before < 1 << 20  # nothing was written: the mapping is the file's
    ready = mapped.populate(weights.values(), threads)
    assert ready >= 4 * ELEMENTS
    assert own_pages(weights["a.weight"]) >= 4 * ELEMENTS
    torch.testing.assert_close(weights["a.weight"], torch.arange(ELEMENTS, dtype=torch.float32), rtol=0, atol=0)


@linux
def test_smoothing_a_mapped_model_asks_for_its_pages_and_leaves_the_file_alone(checkpoint, monkeypatch):
    asked = []
    real = mapped._madvise()
    monkeypatch.setattr(mapped, "_madvise", lambda: lambda *call: asked.append(call) or real(*call))
    content = checkpoint.read_bytes()
    model, copy = Two(), Two()
    model.load_state_dict(load_file(checkpoint), assign=True)
    copy.load_state_dict(load_file(checkpoint))
    plan = sff_fast.trace(Two).override("*", sff_fast.Uniform(-1, 1))
    sff_fast.smooth_(copy, plan, 0.7, seed=3)  # in memory of its own
    assert asked == []
    sff_fast.smooth_(model, plan, 0.7, seed=3)
    assert sum(length for _, length, _ in asked) >= 4 * ELEMENTS
    assert all(advice == 23 for _, _, advice in asked)
    for name, parameter in copy.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=0, atol=0)
    assert checkpoint.read_bytes() == content


def test_a_system_that_cannot_do_it_changes_no_value(checkpoint, monkeypatch):
    monkeypatch.setattr(mapped, "_madvise", lambda: lambda *call: -1)
    weights = load_file(checkpoint)
    assert mapped.populate(weights.values()) == 0
    monkeypatch.setattr(mapped, "_madvise", lambda: None)
    assert mapped.populate(weights.values()) == 0
    assert float(weights["a.weight"][5]) == 5.0


def test_little_memory_and_memory_of_no_file_is_left_to_the_kernel():
    assert mapped.populate([torch.zeros(ELEMENTS)], 1) == 0
    assert mapped.populate([torch.zeros(10), torch.zeros(0)]) == 0


@pytest.mark.parametrize(
    ("spans", "others", "shared"),
    [
        ([(0, 10)], [(2, 4), (6, 20)], [(2, 4), (6, 10)]),
        ([(0, 3), (5, 9)], [(1, 6)], [(1, 3), (5, 6)]),
        ([(0, 3)], [(3, 9)], []),
        ([(4, 5), (7, 8)], [(0, 100)], [(4, 5), (7, 8)]),
        ([], [(0, 1)], []),
    ],
)
def test_what_two_lists_of_spans_share(spans, others, shared):
    assert list(mapped._common(spans, others)) == shared
    assert list(mapped._common(others, spans)) == shared


def test_neighbouring_tensors_are_one_span():
    assert mapped._merged([(8, 12), (0, 4), (4, 8), (20, 24), (10, 11)]) == [(0, 12), (20, 24)]
