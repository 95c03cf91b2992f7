"""FusedAdam and FusedAdamW against torch.optim, against float64, and against themselves on every instruction set."""

from __future__ import annotations

import copy
import itertools
import math

import kernel_cases
import numpy as np
import optim_cases as cases
import pytest
import torch

import sff_fast
from sff_fast.errors import ArgumentError
from sff_fast.optim import make_optimizer
from sff_fast.optim.fused_adamw import FusedAdam, FusedAdamW
from sff_fast.stream import ROUND, rounding_key, stream_id

PAIRS = ((FusedAdamW, torch.optim.AdamW), (FusedAdam, torch.optim.Adam))
STATE_DTYPES = ("float32", "bfloat16", "int8")
STORING = (
    (torch.float32, {}),
    (torch.bfloat16, {}),
    (torch.float16, {}),
    (torch.bfloat16, {"stochastic_rounding": True}),
    (torch.bfloat16, {"compensation": "kahan"}),
    (torch.float16, {"compensation": "kahan"}),
)


def assert_close(ours: list[torch.nn.Parameter], theirs: list[torch.nn.Parameter]) -> None:
    """Within 1e-6 of the parameter's norm: both round to float32 a few times a step."""
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_hundred_steps_follow_torch(ours: type, theirs: type, weight_decay: float, amsgrad: bool, maximize: bool) -> None:
    a, b = cases.parameters(), cases.parameters()
    options = {"lr": 3e-3, "weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
    cases.train(ours(a, **options), a, 100)
    cases.train(theirs(b, **options), b, 100)
    assert_close(a, b)


def float64_adamw(p: torch.Tensor, steps: int, lr: float, decay: float) -> torch.Tensor:
    """The definition of AdamW in float64, gradients of the one parameter of :func:`cases.give_gradients`."""
    p = p.detach().double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(steps):
        stand_in = torch.nn.Parameter(p.float())
        cases.give_gradients([stand_in], step)
        g = stand_in.grad.double()
        p = p * (1 - lr * decay)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    return p


def test_a_hundred_steps_follow_the_definition_in_float64() -> None:
    params = cases.parameters(sizes=[(5000,)])
    exact = float64_adamw(params[0], 100, 1e-2, 0.1)
    cases.train(FusedAdamW(params, lr=1e-2, weight_decay=0.1), params, 100)
    # float32(1 - lr * weight_decay), torch's factor too, is off by up to 3e-8 at each of 100 steps
    assert ((params[0].detach().double() - exact).abs() / (exact.abs() + 0.1)).max() < 4e-6


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("dtype", "options"), STORING)
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_every_instruction_set_and_the_reference_give_equal_bits(
    state_dtype: str, dtype: torch.dtype, options: dict[str, object], amsgrad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in kernel_cases.BACKENDS:
        params = cases.parameters(dtype)
        optimizer = FusedAdamW(params, lr=1e-2, amsgrad=amsgrad, state_dtype=state_dtype, seed=11, **options)
        with cases.backend(name, monkeypatch):
            cases.train(optimizer, params, 4)
        results.append(cases.everything(optimizer, params))
    for other in results[1:]:
        cases.assert_equal_bits(results[0], other)


@pytest.mark.parametrize("name", kernel_cases.ISAS)
def test_any_number_of_quantized_blocks_gives_the_bits_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to 7 pairs of blocks, and then 2 modulo 4 pairs, run in two streams; up to 7 blocks and a part of one are left over.
    sizes = [(256 * blocks + rest,) for blocks in range(28) for rest in (0, 77)]
    results = []
    for backend in ("reference", name):
        params = cases.parameters(sizes=sizes)
        optimizer = FusedAdamW(params, lr=1e-2, state_dtype="int8")
        with cases.backend(backend, monkeypatch):
            cases.train(optimizer, params, 3)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("name", kernel_cases.BACKENDS)
def test_infinities_nans_and_denormals_give_equal_bits(name: str, state_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([0.0, -0.0, 1e-42, -1e-30, 3e38, math.inf, -math.inf, math.nan, 1.0, -2.0])
    results = []
    for run in ("reference", name):
        params = [torch.nn.Parameter(values.repeat(k)) for k in (1, 60)]
        optimizer = FusedAdamW(params, state_dtype=state_dtype)
        with cases.backend(run, monkeypatch):
            for shift in range(3):
                for p in params:
                    p.grad = values.roll(shift).repeat(p.numel() // 10)
                optimizer.step()
        results.append([p.detach().nan_to_num(nan=7.0) for p in params])
    cases.assert_equal_bits(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("name", kernel_cases.BACKENDS)
def test_a_nan_is_stored_as_the_canonical_one_wherever_it_stands(
    name: str, state_dtype: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One NaN with a sign and a payload a block of 256, at each place of a block in turn, and in the rest of a block."""
    payload = {torch.float32: -0x3EDCBB, torch.bfloat16: -0x3B, torch.float16: -0x1BB}[dtype]
    canonical = {torch.float32: 0x7FC00000, torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}[dtype]
    p = torch.nn.Parameter(torch.full((256 * 256 + 77,), 0.5, dtype=dtype))
    p.grad = torch.full_like(p, 0.25)
    at = torch.cat((torch.arange(256) * 257, torch.tensor([256 * 256 + 70])))
    kernel_cases.bits(p.grad)[at] = payload
    assert int(p.grad.isnan().sum()) == len(at)
    with cases.backend(name, monkeypatch):
        FusedAdamW([p], state_dtype=state_dtype).step()
    found = kernel_cases.bits(p.detach())
    assert torch.equal(p.isnan().nonzero().flatten(), at)
    assert set(found[at].tolist()) == {canonical}


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_the_result_does_not_depend_on_threads_or_buckets(state_dtype: str) -> None:
    sizes = [(300_000,), (17,), (200_001,)]
    results = []
    threads = torch.get_num_threads()
    for count, limit in ((1, 1), (3, 1 << 30)):
        params = cases.parameters(torch.bfloat16, sizes)
        optimizer = FusedAdamW(params, state_dtype=state_dtype, stochastic_rounding=True, max_norm=0.1, bucket_bytes=limit)
        torch.set_num_threads(count)
        try:
            cases.train(optimizer, params, 2)
        finally:
            torch.set_num_threads(threads)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


def test_a_parameter_without_gradient_keeps_its_own_step_count() -> None:
    pairs = [(cases.parameters(), FusedAdamW), (cases.parameters(), torch.optim.AdamW)]
    for params, make in pairs:
        optimizer = make(params, lr=1e-2)
        for step in range(20):  # like experts: each is chosen now and then, one never
            cases.train(optimizer, params, 1, step, skip=[0, *(i for i in range(1, 9) if (step + i) % 3 == 0)])
        assert params[0] not in optimizer.state
        steps = [float(optimizer.state[p]["step"]) for p in params[1:]]
        assert steps == [float(sum((s + i) % 3 != 0 for s in range(20))) for i in range(1, 9)]
    assert_close(pairs[0][0], pairs[1][0])


def test_groups_have_their_own_options() -> None:
    results = []
    for make in (FusedAdamW, torch.optim.AdamW):
        params = cases.parameters()
        optimizer = make(
            [{"params": params[:3], "lr": 1e-2}, {"params": params[3:5], "betas": (0.8, 0.99), "eps": 1e-4}], lr=1e-3
        )
        optimizer.add_param_group({"params": params[5:], "weight_decay": 0.3, "amsgrad": True, "maximize": True})
        cases.train(optimizer, params, 30)
        results.append(params)
    assert_close(*results)


def test_groups_may_have_states_of_different_precision() -> None:
    params = cases.parameters()
    optimizer = FusedAdamW([{"params": params[:4], "state_dtype": "int8"}, {"params": params[4:]}])
    cases.train(optimizer, params, 1)
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.uint8
    assert optimizer.state[params[4]]["exp_avg"].dtype == torch.float32


def test_learning_rate_tensors_and_schedulers_are_read_at_every_step() -> None:
    results = []
    for make, lr in ((FusedAdamW, torch.tensor(1e-2)), (torch.optim.AdamW, 1e-2)):
        params = cases.parameters()
        optimizer = make(params, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        for step in range(10):
            cases.train(optimizer, params, 1, step)
            schedule.step()
        results.append(params)
    assert_close(*results)


def test_a_closure_is_called_once_with_gradients_enabled() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = sff_fast.FusedAdamW([p], lr=0.1, weight_decay=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 3.0
    assert torch.allclose(p, torch.full((3,), 0.9))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_both_ways_follows_torch(set_to_none: bool) -> None:
    results = []
    for make in (FusedAdamW, torch.optim.AdamW):
        params = cases.parameters()
        optimizer = make(params, lr=1e-2)
        for step in range(6):
            if step % 2:
                optimizer.zero_grad(set_to_none=set_to_none)
                optimizer.step()  # zeros are a step, None is not
            cases.train(optimizer, params, 1, step)
        results.append(params)
    assert_close(*results)


def test_the_gradient_is_not_written() -> None:
    params = cases.parameters()
    cases.give_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    FusedAdamW(params, max_norm=1e-3, maximize=True).step()
    cases.assert_equal_bits(before, [p.grad for p in params])


def test_memory_around_parameters_and_gradients_is_left_alone() -> None:
    frame = torch.full((3, 1000), 12345.0)
    p, grad = torch.nn.Parameter(frame[1, 300:701].detach()), torch.full((401,), 0.5)
    optimizer = FusedAdamW([p], state_dtype="int8")
    p.grad = grad
    optimizer.step()
    touched = torch.zeros(3, 1000, dtype=torch.bool)
    touched[1, 300:701] = True
    assert bool((frame[~touched] == 12345.0).all())
    assert bool((frame[touched] != 12345.0).all())


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_dense_parameters_of_any_stride_order_follow_torch(layout: str) -> None:
    results = []
    for make in (FusedAdamW, torch.optim.AdamW):
        x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5) / 60
        x = x.transpose(0, 3) if layout == "transposed" else x.to(memory_format=torch.channels_last)
        p = torch.nn.Parameter(x)
        optimizer = make([p], lr=1e-2)
        for step in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))  # contiguous: another order than p
            optimizer.step()
        results.append([p])
        assert optimizer.state[p]["exp_avg"].shape == p.shape
    assert_close(*results)


def test_a_parameter_that_moves_is_followed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sff_fast.optim.buckets._said_moved", set())
    still, moving = cases.parameters(), cases.parameters()
    a, b = FusedAdamW(still), FusedAdamW(moving)
    with caplog.at_level("INFO", logger="sff_fast"):
        for step in range(3):
            cases.train(a, still, 1, step)
            old = moving[3].data
            moving[3].data = old.clone()
            old.fill_(99.0)
            cases.train(b, moving, 1, step)
            assert bool((old == 99.0).all())
    cases.assert_equal_bits(still, moving)
    assert [r.message for r in caplog.records if "moved in memory" in r.message] == [
        "FusedAdamW: 1 parameter(s) moved in memory since the last step, 3 first: the step follows them"
    ]


def test_a_copied_optimizer_goes_on_by_itself() -> None:
    params = cases.parameters()
    optimizer = FusedAdamW(params, state_dtype="int8", max_norm=0.5)
    cases.train(optimizer, params, 3)
    other, other_params = copy.deepcopy((optimizer, params))
    assert other.max_norm == 0.5
    before = cases.everything(optimizer, params)
    cases.train(other, other_params, 3, first=3)
    cases.assert_equal_bits(before, cases.everything(optimizer, params))
    cases.train(optimizer, params, 3, first=3)
    cases.assert_equal_bits(cases.everything(optimizer, params), cases.everything(other, other_params))


def test_a_step_bumps_autograds_version_counter() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    loss = (p * p).sum()
    p.grad = torch.ones(4)
    FusedAdamW([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_frozen_parameter_is_left_alone_and_may_be_unfrozen() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    optimizer = FusedAdamW(model.parameters())
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert model[0].weight not in optimizer.state
    model[0].requires_grad_(True)
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    assert float(optimizer.state[model[0].weight]["step"]) == 1.0
    assert float(optimizer.state[model[1].weight]["step"]) == 2.0


# ---------------------------------------------------------------------- clipping and scaling
@pytest.mark.parametrize("max_norm", [0.05, 1e6])
@pytest.mark.parametrize("name", ["reference", "avx2"])
def test_clipping_in_the_step_follows_clip_grad_norm(name: str, max_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = cases.parameters(), cases.parameters()
    ours, theirs = FusedAdamW(a, lr=1e-2, max_norm=max_norm, eps=1e-2), torch.optim.AdamW(b, lr=1e-2, eps=1e-2)
    for step in range(10):
        with cases.backend(name, monkeypatch):
            cases.train(ours, a, 1, step)
        cases.give_gradients(b, step)
        exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in b))
        assert ours.grad_norm == pytest.approx(exact, rel=1e-12)
        torch.nn.utils.clip_grad_norm_(b, max_norm)
        theirs.step()
    assert_close(a, b)


def test_the_clipping_coefficient_is_torchs() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = FusedAdamW([p], max_norm=1e-5)
    p.grad = torch.tensor([6e-6, 8e-6])
    clipped = p.grad.clone()
    stand_in = torch.nn.Parameter(torch.zeros(2))
    stand_in.grad = clipped
    torch.nn.utils.clip_grad_norm_([stand_in], 1e-5)
    optimizer.step()
    assert torch.allclose(optimizer.state[p]["exp_avg"], 0.1 * stand_in.grad, rtol=1e-6, atol=0.0)
    assert float(stand_in.grad.norm()) < 0.95e-5  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_clipped_as_torch_clips_it(bad: float) -> None:
    """A NaN reaches every parameter, an infinity its own element: the others' gradients become 0."""
    a, b = cases.parameters(sizes=[(3,), (4,)]), cases.parameters(sizes=[(3,), (4,)])
    ours, theirs = FusedAdamW(a, lr=1e-2, max_norm=1.0), torch.optim.AdamW(b, lr=1e-2)
    for params in (a, b):
        cases.give_gradients(params, 0)
        params[1].grad[2] = bad
    ours.step()
    torch.nn.utils.clip_grad_norm_(b, 1.0)
    theirs.step()
    assert sum(int(p.isnan().sum()) for p in b) == (7 if math.isnan(bad) else 1)
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0.0, equal_nan=True)


def test_the_norm_has_the_same_bits_on_every_instruction_set() -> None:
    norms = set()
    for isa in kernel_cases.ISAS:
        params = cases.parameters(torch.bfloat16, [(100_003,), (31,)])
        optimizer = FusedAdamW(params, max_norm=1.0)
        with kernel_cases.forced_isa(isa):
            cases.train(optimizer, params, 1)
        norms.add(optimizer.grad_norm)
    assert len(norms) == 1


def test_grad_scaler_unscales_in_the_step_and_skips_on_overflow() -> None:
    a, b = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    ours, theirs = FusedAdamW([a], eps=1e-3, max_norm=10.0), torch.optim.AdamW([b], eps=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        ours.zero_grad()
        factor = math.inf if step == 2 else 0.01
        scaler.scale((a * factor).sum()).backward()
        scaler.step(ours)
        scaler.update()
        if step != 2:
            b.grad = torch.full((5,), 0.01)
            theirs.step()
            assert ours.grad_norm == pytest.approx(0.01 * math.sqrt(5), rel=1e-6)
    assert float(ours.state[a]["step"]) == 3.0
    assert_close([a], [b])


# ---------------------------------------------------------------------- rounding
@pytest.mark.parametrize("clip", ["global", "bucket"])
def test_clipping_bounds_the_norm_of_gradients_without_their_loss_scale(clip: str) -> None:
    """A loss scale of 8, a power of two, changes no bits."""
    results, norms = [], []
    for scale in (1.0, 8.0):
        params = cases.parameters()
        optimizer = FusedAdamW(params, max_norm=0.5, clip=clip, bucket_bytes=1000)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        for step in range(3):
            cases.give_gradients(params, step)
            for p in params:
                p.grad *= scale
            optimizer.step()
        norms.append(optimizer.grad_norm)
        results.append(cases.everything(optimizer, params))
    assert norms[0] == norms[1]
    cases.assert_equal_bits(*results)


def test_stochastic_rounding_takes_the_bits_of_the_random_stream() -> None:
    n, seed = 1000, 5
    p = torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
    optimizer = FusedAdamW([("layer.w", p)], lr=1e-3, weight_decay=0, stochastic_rounding=True, seed=seed)
    p.grad = torch.ones_like(p)
    optimizer.step()
    # the exact result is 1 - 1e-3, between 1 - 2**-8 and 1: bits of float32 below bfloat16 plus h carry, or not
    exact = np.float32(1) - np.float32(np.float32(1e-3) / np.float32(0.1)) * np.float32(0.1) / np.float32(1 + 1e-8)
    low = int(np.float32(exact).view(np.uint32)) & 0xFFFF
    words = kernel_cases.philox("reference")(rounding_key(seed, 1), stream_id("layer.w", ROUND), 0, n // 8)
    halves = words.astype("<u4").view("<u2").reshape(-1)
    up = torch.from_numpy((halves.astype(np.int64) + low) >= 1 << 16)
    agree = (p.detach() == 1.0) == up
    assert int((~agree).sum()) <= 1  # `exact` may be a unit of float32 off
    assert 0.65 < float(up.float().mean()) < 0.83  # 1 - 1e-3 * 2**8 = 0.744


@pytest.mark.parametrize("options", [{"stochastic_rounding": True}, {"compensation": "kahan"}])
def test_small_updates_of_bfloat16_parameters_are_not_lost(options: dict[str, object]) -> None:
    p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = FusedAdamW([p], lr=1e-4, weight_decay=0, **options)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    value = p.detach().float() + (optimizer.state[p]["compensation"].float() if "compensation" in options else 0)
    assert float(value.mean()) == pytest.approx(0.99, abs=2e-4)  # spacing of bfloat16 here: 4e-3
    plain = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    plain.grad = torch.ones_like(plain)
    FusedAdamW([plain], lr=1e-4, weight_decay=0).step()
    assert float(plain.detach()) == 1.0


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_small_second_moments_follow_their_mean_over_time(state_dtype: str) -> None:
    """From 1 to 0.5 by thousandths: nearest rounding would stand still, and the block's largest element hides no drift."""
    n = 512
    p = torch.nn.Parameter(torch.zeros(n))
    optimizer = FusedAdamW([p], lr=0.0, state_dtype=state_dtype)
    largest = torch.zeros(n, dtype=torch.bool)
    largest[::256] = True
    for step in range(1500):
        p.grad = torch.where(largest, 1.0, 1.0 if step < 3 else 0.25)
        optimizer.step()
    state = sff_fast.optim.state.as_float32(optimizer.state[p], "exp_avg_sq")
    g2 = [1.0] * 3 + [0.0625] * 1497
    exact = sum(0.001 * g * 0.999 ** (1499 - s) for s, g in enumerate(g2))
    assert float(state[~largest].mean()) == pytest.approx(exact, rel=0.02)


def test_a_second_moment_in_int8_never_becomes_zero() -> None:
    p = torch.nn.Parameter(torch.zeros(256))
    optimizer = FusedAdamW([p], state_dtype="int8", lr=1e-3, weight_decay=0)
    for _ in range(5):
        p.grad = torch.full((256,), 1e-7)
        p.grad[0] = 1.0
        optimizer.step()
        assert bool((optimizer.state[p]["exp_avg_sq"] > 0).all())
    assert float(p.detach().abs().max()) < 5 * 1.1e-3


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr must be finite and not negative, got lr=-1\.0"),
        ({"lr": math.nan}, "lr must be finite and not negative, got lr=nan"),
        ({"lr": torch.ones(2)}, "lr must be a number or a tensor of one element, got one of 2 elements"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got betas\[1\]=1\.0"),
        ({"betas": 0.9}, r"betas must be two numbers, got 0\.9"),
        ({"eps": -1e-8}, "eps must be finite and not negative, got eps=-1e-08"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and not negative, got weight_decay=inf"),
        ({"state_dtype": "fp8"}, "state_dtype must be one of float32, bfloat16, int8, got 'fp8'"),
        ({"compensation": "neumaier"}, "compensation must be None or 'kahan', got 'neumaier'"),
        ({"compensation": "kahan", "stochastic_rounding": True}, "exclude each other: choose one"),
        ({"max_norm": 0.0}, r"max_norm must be finite and above 0, or None, got max_norm=0\.0"),
        ({"clip": "layer"}, "clip must be one of global, bucket, got 'layer'"),
        ({"seed": 1.5}, r"seed must be an integer, got 1\.5"),
        ({"bucket_bytes": 0}, "bucket_bytes must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FusedAdamW([torch.nn.Parameter(torch.ones(1))], **options)


def test_a_bad_group_is_refused_and_not_kept() -> None:
    optimizer = FusedAdamW([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ArgumentError, match="state_dtype must be one of"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "state_dtype": "int4"})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        (torch.ones(2, dtype=torch.float64), {}, "parameter 0 is torch.float64: expected dense float32, bfloat16 or float16"),
        (torch.ones(2, 1).expand(2, 3), {}, "parameter 0 has gaps or overlaps in memory"),
        (torch.ones(4, 4)[:, :2], {}, "parameter 0 has gaps or overlaps in memory"),
        (torch.ones(2, 3).t(), {"state_dtype": "int8"}, "parameter 0 is not contiguous: state_dtype='int8'"),
    ],
)
def test_parameters_that_cannot_be_run_are_refused(tensor: torch.Tensor, options: dict[str, object], message: str) -> None:
    p = torch.nn.Parameter(tensor)
    optimizer = FusedAdamW([p], **options)
    p.grad = torch.ones_like(p)
    with pytest.raises(ArgumentError, match=message):
        optimizer.step()


def test_tensor_subclasses_are_refused_by_name() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    p = torch.nn.Parameter(TwoTensor(torch.ones(2), torch.ones(2)))
    optimizer = FusedAdamW([p])
    with pytest.raises(ArgumentError, match="parameter 0 is a TwoTensor: expected an ordinary tensor"):
        optimizer.step()


def test_a_sparse_gradient_is_refused_before_anything_changes() -> None:
    a, table = torch.nn.Parameter(torch.ones(3)), torch.nn.Embedding(5, 2, sparse=True)
    optimizer = FusedAdamW([("a", a), ("table", table.weight)])
    (table(torch.tensor([1])).sum() + a.sum()).backward()
    with pytest.raises(ArgumentError, match=r"the gradient of parameter table is torch\.sparse_coo"):
        optimizer.step()
    assert torch.equal(a.detach(), torch.ones(3))
    assert not optimizer.state


def test_a_parameter_that_changed_its_dtype_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = FusedAdamW(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    model.to(torch.bfloat16)
    with pytest.raises(ArgumentError, match=r"parameter weight is torch\.bfloat16 .* its state was made for torch\.float32"):
        optimizer.step()


def test_a_parameter_whose_elements_moved_among_themselves_is_refused_and_stays() -> None:
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = FusedAdamW([("weight", p)])
    p.grad = torch.ones(3, 4)
    optimizer.step()
    p.data = torch.ones(4, 3).t()
    with pytest.raises(ArgumentError, match=r"parameter weight has the strides \(1, 3\) now, its state was made for \(4, 1\)"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3, 4))


def test_parameters_that_share_memory_are_refused() -> None:
    x = torch.ones(10)
    a, b = torch.nn.Parameter(x[:6]), torch.nn.Parameter(x[4:])
    optimizer = FusedAdamW([a, b])
    a.grad, b.grad = torch.ones(6), torch.ones(6)
    with pytest.raises(ValueError, match="optimizer table, task 1: writes memory that task 0 writes too"):
        optimizer.step()


def test_the_kernels_refuse_a_table_that_cannot_be() -> None:
    from sff_fast import _cpu
    from sff_fast.optim.task import ADAMW_DTYPE

    assert ADAMW_DTYPE.itemsize == _cpu.ADAMW_TASK_BYTES
    good = np.zeros(1, ADAMW_DTYPE)
    buffer = np.zeros(64, np.float32)
    good["elements"] = 1
    for i, name in enumerate(("param", "grad", "exp_avg", "exp_avg_sq")):
        good[name] = buffer.ctypes.data + 4 * i
    assert _cpu.adamw(good.view(np.uint8), 1) == 1
    for field, value, message in (
        ("param_dtype", 3, "unknown dtype code 3"),
        ("state_type", 3, "unknown state type 3"),
        ("storing", 3, "unknown storing code 3"),
        ("storing", 1, "stochastic rounding of a dtype other than bfloat16"),
        ("storing", 2, "compensation of a float32 parameter"),
        ("elements", -1, "expected 0 to 2\\^60 elements, got -1"),
        ("grad", 0, "grad is null or not aligned"),
        ("exp_avg", buffer.ctypes.data + 2, "exp_avg is null or not aligned"),
        ("exp_avg", good["param"][0], "writes memory that task 0 writes too"),
        ("state_type", 2, "exp_avg_scale is null"),
    ):
        bad = good.copy()
        bad[field] = value
        with pytest.raises(ValueError, match=message):
            _cpu.adamw(bad.view(np.uint8), 1)
    with pytest.raises(ValueError, match="a multiple of"):
        _cpu.adamw(np.zeros(5, np.uint8), 1)
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        _cpu.adamw(good.view(np.uint8), 0)


# ---------------------------------------------------------------------- around
@pytest.mark.parametrize(("name", "kind"), [("fused-adam", FusedAdam), ("fused-adamw", FusedAdamW)])
def test_the_loop_knows_the_optimizers_by_name(name: str, kind: type) -> None:
    optimizer = make_optimizer(name, [torch.nn.Parameter(torch.ones(2))], lr=1e-3, weight_decay=0.5)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_without_the_native_module_the_step_runs_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = cases.parameters(), cases.parameters()
    cases.train(FusedAdamW(a), a, 2)
    monkeypatch.setattr("sff_fast.backends.cpu._cpu", None)
    monkeypatch.setattr("sff_fast.backends.cpu._why_absent", "taken away")
    monkeypatch.setattr("sff_fast.backends._said", set())
    with pytest.warns(RuntimeWarning, match="using the slow reference backend"):
        cases.train(FusedAdamW(b), b, 2)
    cases.assert_equal_bits(a, b)


def test_all_combinations_of_dtype_and_state_reduce_a_loss() -> None:
    for (dtype, options), state_dtype in itertools.product(STORING, STATE_DTYPES):
        p = torch.nn.Parameter(torch.full((300,), 2.0, dtype=dtype))
        optimizer = FusedAdamW([p], lr=0.05, state_dtype=state_dtype, weight_decay=0, **options)
        for _ in range(60):
            p.grad = p.detach().clone()
            optimizer.step()
        assert float(p.detach().float().abs().max()) < 0.5
