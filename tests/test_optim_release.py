"""release_gradients: the same trajectory with the gradients freed inside the backward pass."""

from __future__ import annotations

from collections.abc import Iterator

import optim_cases as cases
import pytest
import torch

from sff_fast.errors import ArgumentError
from sff_fast.optim.fused_adamw import FusedAdamW

WIDTH, DEPTH = 64, 12
LAYER_BYTES = (WIDTH * WIDTH + WIDTH) * 4


class Net(torch.nn.Module):
    """Layers of equal size; some may be left out of the forward pass, as experts are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor, skip: tuple[int, ...] = ()) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            if i not in skip:
                x = x + torch.tanh(layer(x))
        return x


def net() -> Net:
    torch.manual_seed(5)
    return Net()


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step))


def losses(model: Net, optimizer: torch.optim.Optimizer, steps: int, skips: bool = False) -> Iterator[float]:
    for step in range(steps):
        skip = (step % DEPTH, (step + 5) % DEPTH) if skips else ()
        loss = model(batch(step), skip).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("bucket_bytes", [1, 3 * LAYER_BYTES, 1 << 30])
@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
def test_releasing_gives_the_bits_of_the_normal_mode(state_dtype: str, bucket_bytes: int, skips: bool) -> None:
    results = []
    for release in (False, True):
        model = net()
        optimizer = FusedAdamW(
            model.parameters(), lr=1e-2, state_dtype=state_dtype, release_gradients=release, bucket_bytes=bucket_bytes
        )
        trace = list(losses(model, optimizer, 2 * DEPTH, skips))
        results.append([torch.tensor(trace), *cases.everything(optimizer, list(model.parameters()))])
        assert len({float(s["step"]) for s in optimizer.state.values()}) >= 1
    cases.assert_equal_bits(*results)


def peak_gradient_bytes(release: bool, bucket_bytes: int, skip: tuple[int, ...] = ()) -> int:
    """Largest sum of gradients alive at once, seen whenever one more has been accumulated."""
    model = net()
    seen = []

    def look(_: torch.Tensor) -> None:
        seen.append(sum(p.grad.numel() * 4 for p in model.parameters() if p.grad is not None))

    for p in model.parameters():  # before the optimizer's own hooks
        p.register_post_accumulate_grad_hook(look)
    optimizer = FusedAdamW(model.parameters(), release_gradients=release, bucket_bytes=bucket_bytes)
    model(batch(0), skip).sum().backward()
    optimizer.step()
    assert not release or all(p.grad is None for p in model.parameters())
    assert release or skip or all(p.grad is not None for p in model.parameters())
    return max(seen)


def test_no_more_than_one_bucket_of_gradients_and_the_layer_in_flight_is_alive() -> None:
    assert peak_gradient_bytes(False, 3 * LAYER_BYTES) == DEPTH * LAYER_BYTES
    assert peak_gradient_bytes(True, 3 * LAYER_BYTES) <= 4 * LAYER_BYTES
    assert peak_gradient_bytes(True, 1) <= LAYER_BYTES


def test_buckets_that_stay_incomplete_hold_no_more_gradients_than_a_bucket() -> None:
    one_of_each_bucket = (0, 3, 6, 9)
    assert peak_gradient_bytes(False, 3 * LAYER_BYTES, one_of_each_bucket) == (DEPTH - 4) * LAYER_BYTES
    assert peak_gradient_bytes(True, 3 * LAYER_BYTES, one_of_each_bucket) <= 4 * LAYER_BYTES


def test_incomplete_buckets_are_stepped_at_the_end_of_backward() -> None:
    model = net()
    optimizer = FusedAdamW(model.parameters(), release_gradients=True)
    before = [p.detach().clone() for p in model.parameters()]
    model(batch(0), skip=(2,)).sum().backward()
    for i, (p, old) in enumerate(zip(model.parameters(), before)):
        assert p.grad is None
        assert torch.equal(p, old) == (i // 2 == 2)
    assert model.layers[2].weight not in optimizer.state


@pytest.mark.parametrize("bucket_bytes", [1, LAYER_BYTES // 2, 3 * LAYER_BYTES])
def test_accumulated_gradients_give_the_bits_of_the_normal_mode(bucket_bytes: int) -> None:
    results = []
    for release in (False, True):
        model = net()
        optimizer = FusedAdamW(model.parameters(), release_gradients=release, bucket_bytes=bucket_bytes)
        for step in range(3):
            if release:
                with optimizer.accumulating():
                    model(batch(2 * step), skip=(7,)).sum().backward()
                assert model.layers[0].weight.grad is not None
            else:
                model(batch(2 * step), skip=(7,)).sum().backward()
            model(batch(2 * step + 1), skip=(3,)).sum().backward()  # layer 3 has a gradient from the first pass alone
            if release:  # the first pass outside uses and frees everything
                assert all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        results.append(cases.everything(optimizer, list(model.parameters())))
    cases.assert_equal_bits(*results)


def test_that_accumulation_keeps_the_whole_gradient_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = FusedAdamW(model.parameters(), release_gradients=True)
    with caplog.at_level("INFO", logger="sff_fast"):
        for _ in range(2):
            with optimizer.accumulating():
                model(batch(0)).sum().backward()
            model(batch(1)).sum().backward()
            optimizer.step()
    assert [r.message for r in caplog.records if "whole gradient" in r.message] == [
        "release_gradients: accumulation keeps the whole gradient, only the last backward pass frees it"
    ]


def test_that_gradients_which_other_processes_add_to_are_kept_until_the_step_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As parameters of DDP in one of several processes; tests/test_optim_shards.py has two."""
    results = []
    for reduced in (False, True):
        monkeypatch.setattr("sff_fast.optim.release.is_reduced_later", lambda p, reduced=reduced: reduced)
        model = net()
        optimizer = FusedAdamW(model.parameters(), release_gradients=True)
        with caplog.at_level("INFO", logger="sff_fast"):
            for step in range(2):
                model(batch(step)).sum().backward()
                assert all((p.grad is not None) == reduced for p in model.parameters())
                optimizer.step()
                assert all(p.grad is None for p in model.parameters())
        results.append(cases.everything(optimizer, list(model.parameters())))
    cases.assert_equal_bits(*results)
    assert [r.message for r in caplog.records if "whole gradient" in r.message] == [
        "release_gradients: several processes with ordinary parameters (DDP) keep the whole gradient until step(); "
        "FSDP2's parameters free it"
    ]


def test_a_tied_parameter_is_stepped_once() -> None:
    results = []
    for release in (False, True):
        model = net()
        model.layers[9].weight = model.layers[1].weight
        optimizer = FusedAdamW(model.parameters(), release_gradients=release, bucket_bytes=1)
        list(losses(model, optimizer, 3))
        assert float(optimizer.state[model.layers[1].weight]["step"]) == 3.0
        results.append(cases.everything(optimizer, list(model.parameters())))
    cases.assert_equal_bits(*results)


def test_activation_checkpointing_gives_the_bits_of_the_normal_mode() -> None:
    from torch.utils.checkpoint import checkpoint

    results = []
    for release in (False, True):
        model = net()
        optimizer = FusedAdamW(model.parameters(), release_gradients=release, bucket_bytes=1)
        for step in range(3):
            optimizer.zero_grad()
            x = batch(step)
            for layer in model.layers:
                x = checkpoint(layer, x, use_reentrant=False).tanh()
            x.square().mean().backward()
            optimizer.step()
        results.append(cases.everything(optimizer, list(model.parameters())))
    cases.assert_equal_bits(*results)


def test_parameters_unfrozen_groups_added_and_states_loaded_later_take_part() -> None:
    results = []
    for release in (False, True):
        model = net()
        for p in model.layers[4].parameters():
            p.requires_grad_(False)
        optimizer = FusedAdamW(model.layers[:8].parameters(), release_gradients=release)
        list(losses(model, optimizer, 2))
        for p in model.layers[4].parameters():
            p.requires_grad_(True)
        optimizer.zero_grad()
        model.zero_grad()
        optimizer.add_param_group({"params": list(model.layers[8:].parameters()), "lr": 1e-4})
        optimizer.load_state_dict(optimizer.state_dict())
        list(losses(model, optimizer, 3))
        results.append(cases.everything(optimizer, list(model.parameters())))
        assert float(optimizer.state[model.layers[4].weight]["step"]) == 3.0
    cases.assert_equal_bits(*results)


def test_a_closure_runs_the_backward_pass_that_steps() -> None:
    results = []
    for release in (False, True):
        model = net()
        optimizer = FusedAdamW(model.parameters(), release_gradients=release)

        def closure(model: Net = model, optimizer: FusedAdamW = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(batch(0)).square().mean()
            loss.backward()
            return loss

        first = float(optimizer.step(closure).detach())
        results.append([torch.tensor(first), *cases.everything(optimizer, list(model.parameters()))])
    cases.assert_equal_bits(*results)


@pytest.mark.parametrize("unscaled", [False, True])
def test_grad_scaler_with_release_is_an_error(unscaled: bool) -> None:
    """After ``unscale_`` a scaler hands over what it found alone, no scale."""
    model = net()
    optimizer = FusedAdamW(model.parameters(), release_gradients=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(batch(0)).sum())
    model.layers[0].weight.grad = torch.ones_like(model.layers[0].weight)
    if unscaled:
        scaler.unscale_(optimizer)
    with pytest.raises(ArgumentError, match="release_gradients=True steps inside backward, before GradScaler"):
        scaler.step(optimizer)


def test_accumulating_needs_release() -> None:
    with pytest.raises(ArgumentError, match="belongs to release_gradients=True"):
        FusedAdamW(net().parameters()).accumulating()


def test_an_optimizer_that_stops_releasing_steps_as_usual() -> None:
    model = net()
    optimizer = FusedAdamW(model.parameters(), release_gradients=True)
    optimizer.stop_releasing()
    before = [p.detach().clone() for p in model.parameters()]
    model(batch(0)).sum().backward()
    for p, old in zip(model.parameters(), before):
        assert p.grad is not None
        assert torch.equal(p, old)
    optimizer.step()
    assert all(float(state["step"]) == 1.0 for state in optimizer.state.values())
    assert len(optimizer.state) == 2 * DEPTH


def clipped(model: Net, optimizer: FusedAdamW, steps: int, dropout: float = 0.0) -> list[float]:
    """Some steps through optimizer.backward."""
    norms = []
    torch.manual_seed(9)
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.backward(
            lambda step=step: torch.nn.functional.dropout(model(batch(step), (step % DEPTH,)), dropout).square().mean()
        )
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return norms


@pytest.mark.parametrize("max_norm", [1e-2, 1e6])
def test_global_clipping_with_release_is_that_of_the_normal_mode_under_replayed_dropout(max_norm: float) -> None:
    results, norms = [], []
    for release in (False, True):
        model = net()
        options = {"release_gradients": release, "max_norm": max_norm, "bucket_bytes": 3 * LAYER_BYTES}
        optimizer = FusedAdamW(model.parameters(), lr=1e-2, **options)
        norms.append(clipped(model, optimizer, 4, dropout=0.3))
        results.append([p.detach() for p in model.parameters()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    assert all(norm > 1e-2 for norm in norms[0])
    # The norms differ in their last bits (other order of sums), which the float32 coefficient may round either way.
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_measuring_the_norm_frees_every_gradient_and_changes_nothing() -> None:
    model = net()
    optimizer = FusedAdamW(model.parameters(), release_gradients=True, max_norm=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    with optimizer._release.measuring() as squares:
        model(batch(0)).sum().backward()
    assert len(squares) == 2 * DEPTH
    assert not optimizer.state
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(model.parameters(), before))


def test_clipping_by_bucket_bounds_each_bucket_and_releases_to_the_same_bits() -> None:
    results = []
    for release in (False, True):
        model = net()
        options = {"release_gradients": release, "max_norm": 1e-3, "clip": "bucket", "bucket_bytes": LAYER_BYTES}
        optimizer = FusedAdamW(model.parameters(), lr=1e-2, betas=(0.0, 0.999), **options)
        list(losses(model, optimizer, 1))
        for layer in model.layers:  # with beta1 = 0 the first moment is the clipped gradient
            norm = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in layer.parameters()]).norm()
            assert float(norm) == pytest.approx(1e-3, rel=1e-2)
        results.append(cases.everything(optimizer, list(model.parameters())))
    cases.assert_equal_bits(*results)


def clipped_together(release: bool) -> list[torch.Tensor]:
    """Two passes reach one of a bucket's three parameters alone; in the third its gradient is the last to come."""
    params = [torch.nn.Parameter(torch.tensor(values)) for values in ([0.5, -1.5], [2.0, 1.0], [1.0, 3.0])]
    first, second, third = params
    came: list[int] = []
    for i, p in enumerate(params):
        p.register_post_accumulate_grad_hook(lambda _, i=i: came.append(i))
    options = {"release_gradients": release, "max_norm": 0.1, "clip": "bucket", "bucket_bytes": 24}
    optimizer = FusedAdamW(params, lr=1e-2, betas=(0.0, 0.999), **options)
    for loss in (lambda: first.sum(), lambda: first.sum(), lambda: (first.exp() * second * third).sum()):
        optimizer.zero_grad()
        loss().backward()
        if not release:  # else nothing is left to do
            optimizer.step()
    assert came == [0, 0, 2, 1, 0]
    clipped = torch.cat([optimizer.state[p]["exp_avg"] for p in params])  # with beta1 = 0
    assert float(clipped.norm()) == pytest.approx(0.1, rel=1e-3)  # of all three together
    return cases.everything(optimizer, params)


def test_a_backward_pass_begins_with_no_gradient_of_the_last_one_counted() -> None:
    cases.assert_equal_bits(clipped_together(release=False), clipped_together(release=True))


def test_global_clipping_without_a_known_norm_says_what_to_call() -> None:
    model = net()
    FusedAdamW(model.parameters(), release_gradients=True, max_norm=1.0)
    with pytest.raises(ArgumentError, match=r"call optimizer\.backward\(closure\) instead of loss\.backward\(\)"):
        model(batch(0)).sum().backward()


def test_a_norm_that_was_measured_is_that_of_one_backward_pass_alone() -> None:
    model = net()
    optimizer = FusedAdamW(model.parameters(), release_gradients=True, max_norm=1.0)
    optimizer.backward(lambda: model(batch(0)).sum())
    optimizer.step()
    with pytest.raises(ArgumentError, match=r"call optimizer\.backward\(closure\)"):
        model(batch(1)).sum().backward()


def test_accumulated_gradients_are_clipped_together_by_step() -> None:
    results = []
    for release in (False, True):
        model = net()
        optimizer = FusedAdamW(model.parameters(), lr=1e-2, release_gradients=release, max_norm=1e-2)
        for step in range(3):
            if release:
                with optimizer.accumulating():
                    model(batch(2 * step)).sum().backward()
            else:
                model(batch(2 * step)).sum().backward()
            optimizer.backward(lambda model=model, step=step: model(batch(2 * step + 1)).sum())
            optimizer.step()
            optimizer.zero_grad()
        results.append(cases.everything(optimizer, list(model.parameters())))
    cases.assert_equal_bits(*results)
