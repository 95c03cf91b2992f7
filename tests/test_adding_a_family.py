"""The example of docs/adding-a-family.md, installed as a plug-in by its entry point, as the page says."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import sff_fast
from sff_fast.adapters import registry
from sff_fast.cli import main
from sff_fast.data import Batch
from sff_fast.errors import CheckpointError

pytest.importorskip("transformers", reason="transformers is not installed: make models-env")
PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-family.md").read_text()


def block(language):
    """The only block of code of a language on the page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """The example as an installed package: its module, and the metadata that pip makes of the entry point."""
    table = re.fullmatch(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "(\w+):(\w+)"\n', block("toml"))
    group, name, module, attribute = table.groups()
    (tmp_path / f"{module}.py").write_text(block("python"))
    metadata = tmp_path / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{attribute}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(module, None)


def test_the_example_is_short():
    assert len(block("python").splitlines()) < 60


def test_the_example_is_found_planned_smoothed_trained_saved_and_loaded(plug_in, tmp_path):
    info = sff_fast.families()[plug_in]
    assert (info.package, info.installed, info.tasks) == ("transformers", True, {"forecast"})
    torch.manual_seed(0)
    state = torch.get_rng_state()
    adapter = sff_fast.tiny(plug_in, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert sff_fast.verify(adapter.build, adapter.plan()).ok
    sff_fast.smooth_(adapter.model, seed=3)
    values = torch.randn(4, 120, 1, generator=torch.Generator().manual_seed(2)).cumsum(1)
    batch = Batch(values[:, :96], values[:, 96:], torch.arange(4))
    before = adapter.loss(batch)
    theirs = adapter.model(past_values=batch.context, future_values=batch.target).loss
    torch.testing.assert_close(before, theirs, rtol=1e-6, atol=0)
    optimizer = torch.optim.Adam([parameter for _, parameter in adapter.head_parameters()], 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        adapter.loss(batch).backward()
        optimizer.step()
    assert adapter.loss(batch) < before
    adapter.save(tmp_path / "saved")
    again = sff_fast.load(plug_in, tmp_path / "saved")
    assert torch.equal(again.forecast(batch.context, 10).mean, adapter.forecast(batch.context, 10).mean)
    sff_fast.tiny("ttm").save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="does not fit the family 'patchtst', first in the tensor"):
        sff_fast.load(plug_in, tmp_path / "other")
    assert {p.dtype for p in sff_fast.load(plug_in, tmp_path / "saved", dtype=torch.bfloat16).model.parameters()} == {
        torch.bfloat16
    }


def test_the_command_line_knows_the_example(plug_in, capsys):
    assert main(["plan", "--family", plug_in, "--tiny"]) == 0
    assert "head.projection.weight" in capsys.readouterr().out
