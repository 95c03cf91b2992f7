"""The registry of optimizers."""

from __future__ import annotations

import pytest
import torch

from sff_fast import optim
from sff_fast.errors import ArgumentError


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_names_make_torchs_fused_optimizers(name, kind):
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    made = optim.make_optimizer(name, iter(parameters), 0.1, 0.2)
    assert type(made) is kind
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.1, 0.2, True)
    assert group["params"] == parameters


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ArgumentError, match=r"optimizer must be one of adam, adamw.*, got 'adan'"):
        optim.make_optimizer("adan", [], 0.1)


def test_a_registered_optimizer_is_found_and_its_name_cannot_be_taken_again(monkeypatch):
    monkeypatch.setattr(optim, "_FACTORIES", dict(optim._FACTORIES))

    @optim.register_optimizer("plain")
    def plain(params, lr, weight_decay):
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)

    assert "plain" in optim.optimizer_names()
    made = optim.make_optimizer("plain", [torch.nn.Parameter(torch.zeros(1))], 0.5)
    assert isinstance(made, torch.optim.SGD)
    with pytest.raises(ArgumentError, match="'plain' is registered already"):
        optim.register_optimizer("plain")(plain)
