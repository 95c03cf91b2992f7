"""The landscape: directions, restoring, known answers, curvature, resuming, memory."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import sys
import weakref

import numpy as np
import pytest
import torch
from family_cases import case_of, marked
from landscape_cases import BowlAdapter, hessian, standard_normal, theta_of
from torch import nn
from training_fakes import FakeAdapter, StopAt, make_data, make_table, quick, steady  # noqa: F401

import sff_fast
from sff_fast import adapters
from sff_fast.data import AnomalyData, ForecastData, ImputationData
from sff_fast.errors import ArgumentError, CheckpointError, MissingPackageError, OutputError
from sff_fast.landscapes import Plane, directions
from sff_fast.landscapes.centres import weights_hash
from sff_fast.landscapes.curvature import NoHessian, curvature
from sff_fast.landscapes.curvature import _differentiable as differentiable
from sff_fast.landscapes.curvature import _Product as Product
from sff_fast.landscapes.filters import filters_of
from sff_fast.landscapes.objective import Objective, choose_windows
from sff_fast.landscapes.result import lowest, rise, verdict
from sff_fast.smooth import smooth_
from sff_fast.training.interrupts import StopRequest
from sff_fast.training.live import LiveBytes

pytestmark = pytest.mark.usefixtures("quick")
PURPOSES = (b"direction0", b"direction1")


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in model.named_parameters()}


def expected_direction(weights: np.ndarray, name: str, purpose: bytes, seed: int) -> np.ndarray:
    """By the definition, for filters that are the rows of a matrix."""
    draw = standard_normal(seed, name, purpose, weights.size).reshape(weights.shape)
    return draw / np.linalg.norm(draw, axis=1, keepdims=True) * np.linalg.norm(weights, axis=1, keepdims=True)


def objective_of(adapter, windows: int = 5) -> Objective:
    data = make_data()
    return Objective(adapter, data, choose_windows(len(data.val), windows, 0), 2, 0, StopRequest())


# --- filters and directions ------------------------------------------------------------


def test_what_a_filter_is_for_each_shape():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)
            self.conv = nn.Conv1d(2, 4, 3)
            self.transposed = nn.ConvTranspose2d(6, 2, (3, 5))
            self.embedding = nn.Embedding(7, 2)
            self.norm = nn.LayerNorm((3, 4))
            self.experts = nn.Parameter(torch.randn(2, 3, 4))
            self.scale = nn.Parameter(torch.tensor(1.0))

    found = {name: (f.rows, f.width, f.count) for name, (_, f) in filters_of(Model()).items()}
    assert found == {
        "experts": (6, 4, 6),
        "linear.weight": (3, 5, 3),
        "conv.weight": (4, 6, 4),
        "transposed.weight": (12, 15, 2),
        "embedding.weight": (7, 2, 7),
    }


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_direction_is_the_stream_scaled_to_the_norm_of_each_filter(monkeypatch, block):
    monkeypatch.setattr(directions, "BLOCK", block)
    model = BowlAdapter.tiny().model
    weights = model.layer.weight.detach().double().numpy()
    with Plane(model, seed=11) as plane:
        for number, purpose in enumerate(PURPOSES):
            expected = expected_direction(weights, "layer.weight", purpose, 11)
            # The kernels' Box-Muller is within 2e-5 of float64's, and the filters here have norms of about 1.
            assert np.abs(plane.direction(number, "layer.weight").numpy() - expected).max() < 1e-4


def test_a_transposed_convolutions_filters_have_the_weights_norms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(3, 4, 5))
    weight = model[0].weight.detach().clone()
    with Plane(model) as plane:
        direction = plane.direction(0, "0.weight")
    assert torch.allclose(direction.norm(dim=(0, 2)), weight.norm(dim=(0, 2)), rtol=1e-5)
    assert not torch.allclose(direction.norm(dim=(1, 2)), weight.norm(dim=(1, 2)), rtol=1e-3)


def test_the_two_directions_differ_and_so_do_seeds():
    model = BowlAdapter.tiny().model
    with Plane(model, seed=1) as plane:
        first, second = (plane.direction(number, "layer.weight") for number in (0, 1))
    with Plane(model, seed=2) as plane:
        other = plane.direction(0, "layer.weight")
    assert abs(float(nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))) < 0.9
    assert not torch.equal(first, other)


def test_a_filter_of_zeros_stays():
    model = BowlAdapter.tiny().model
    with torch.no_grad():
        model.layer.weight[1] = 0
    with Plane(model) as plane:
        plane.move(0.7, -0.3)
        assert torch.equal(model.layer.weight[1], torch.zeros(4))
        assert (model.layer.weight[0] != 0).all()


def test_biases_and_norms_stay_where_they_are():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = bits(model)
    with Plane(model) as plane:
        plane.move(1.0, 1.0)
        moved = {name for name, content in bits(model).items() if content != before[name]}
    assert moved == {"0.weight"}


def test_a_move_is_the_weights_plus_both_directions():
    model = BowlAdapter.tiny().model
    weights = model.layer.weight.detach().clone()
    with Plane(model, seed=4) as plane:
        both = [plane.direction(number, "layer.weight").clone() for number in (0, 1)]
        plane.move(0.9, 0.9)  # a move starts from the centre, not from the last point
        plane.move(0.5, -0.25)
        moved = model.layer.weight.detach().clone()
    # Three roundings to float32 of numbers below 4.
    assert torch.allclose(moved, weights + 0.5 * both[0] - 0.25 * both[1], rtol=0, atol=1e-6)


def test_a_move_in_bfloat16_is_rounded_once():
    model = BowlAdapter.tiny().model.to(torch.bfloat16)
    weights = model.layer.weight.detach().float()
    with Plane(model, seed=4) as plane:
        direction = plane.direction(0, "layer.weight")
        plane.move(0.5, 0)
        assert torch.equal(model.layer.weight, (weights + 0.5 * direction).to(torch.bfloat16))


def test_directions_do_not_depend_on_what_else_the_model_has():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    alone = nn.ModuleDict({"layer": layer})
    beside = nn.ModuleDict({"first": nn.Linear(2, 2), "layer": layer})
    found = []
    for model in (alone, beside, nn.DataParallel(alone)):
        with Plane(model, seed=9) as plane:
            found.append(plane.direction(1, "layer.weight"))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_are_restored_bit_for_bit(dtype):
    model = adapters.tiny("timer").model.to(dtype)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 2)[0, :3] = torch.tensor([-0.0, math.nan, 1e-42])
    before = bits(model)
    with Plane(model) as plane:
        plane.move(0.3, 0.4)
        assert bits(model) != before
        plane.move(0.0, 0.0)
        assert bits(model) == before
        plane.move(-1.0, 0.0)
    assert bits(model) == before


def test_weights_that_are_not_contiguous_are_moved_and_restored():
    torch.manual_seed(0)
    plain, strided = nn.Linear(6, 4), nn.Linear(6, 4)
    strided.weight = nn.Parameter(plain.weight.detach().t().contiguous().t())
    moved = []
    for layer in (plain, strided):
        before = layer.weight.detach().clone()
        with Plane(nn.Sequential(layer)) as plane:
            plane.move(0.3, 0.1)
            moved.append(layer.weight.detach().clone())
        assert torch.equal(layer.weight, before)
    assert torch.equal(*moved)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_weights_are_restored_when_something_fails(error):
    model = BowlAdapter.tiny().model
    before = bits(model)

    def fail():
        with Plane(model) as plane:
            plane.move(0.3, 0.4)
            raise error

    with pytest.raises(error):
        fail()
    assert bits(model) == before


def test_the_weights_are_restored_when_restoring_is_interrupted(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = bits(model)
    original, calls = Plane._restore, []

    def interrupted_once(self):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Plane, "_restore", interrupted_once)
    with pytest.raises(KeyboardInterrupt), Plane(model) as plane:
        plane.move(0.3, 0.4)
    assert bits(model) == before


def test_one_copy_of_the_weights_and_a_block_is_all_the_memory_that_moving_takes(monkeypatch):
    monkeypatch.setattr(directions, "BLOCK", 1000)
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(5)))
    weights = 5 * 100 * 100 * 4
    with LiveBytes(model.parameters()) as live:
        with Plane(model) as plane:
            for a in (-1.0, 0.0, 0.5):
                plane.move(a, 0.5)
        peak = live.take_peak()
    # A block of 10 rows takes 4 kB; a few of them in float64 and the factors of 500 filters are alive beside the copy.
    assert weights < peak < weights + 60_000


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ArgumentError, match="no parameter with two axes"):
        Plane(nn.LayerNorm(3))


# --- known answers ------------------------------------------------------------


def test_the_landscape_of_a_quadratic_loss_is_known():
    adapter = BowlAdapter.tiny()
    theta, matrix = theta_of(adapter.model), hessian()
    both = [np.zeros(15), np.zeros(15)]
    for vector, purpose in zip(both, PURPOSES):
        vector[:12] = expected_direction(theta[:12].reshape(3, 4), "layer.weight", purpose, 5).ravel()
    result = sff_fast.landscape(BowlAdapter.tiny, make_data(), alpha=1, grid=5, span=0.8, seed=5, hessian=False)
    (centre,) = result.centres
    assert result.axis == [-0.8, -0.4, 0.0, 0.4, 0.8]
    for i, a in enumerate(result.axis):
        for j, b in enumerate(result.axis):
            moved = theta + a * both[0] + b * both[1]
            # float32 arithmetic on a loss of about 10, and directions within 1e-4.
            assert centre["losses"][i][j] == pytest.approx(5 + moved @ matrix @ moved / 2, abs=5e-3), (a, b)
    assert centre["loss"] == centre["losses"][2][2]


def test_the_hessian_of_a_quadratic_loss_is_known():
    adapter = BowlAdapter.tiny()
    matrix = hessian()
    found = curvature(objective_of(adapter), probes=200, seed=1)
    # eigsh stops at a relative residual of 1e-3, and the eigenvalue's error is below the residual.
    assert found.top_eigenvalue == pytest.approx(20, abs=0.02)
    assert found.residual < 0.02
    # Hutchinson's estimate with random signs has the variance 2 * (sum of squares off the diagonal) a probe.
    error = math.sqrt(2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum()) / 200)
    assert abs(found.trace - 96) < 4 * error
    assert found.trace_error == pytest.approx(error, rel=0.3)
    assert (found.probes, found.elements) == (200, 15)


def test_the_trace_of_a_diagonal_hessian_is_exact_with_one_probe():
    adapter = FakeAdapter.tiny()
    adapter._loss = lambda context, target: sum((k + 1) * p.square().sum() for k, p in enumerate(adapter.model.parameters()))
    sizes = [p.numel() for p in adapter.model.parameters()]
    found = curvature(objective_of(adapter), probes=1, seed=0)
    assert found.trace == pytest.approx(sum(2 * (k + 1) * size for k, size in enumerate(sizes)), rel=1e-5)
    assert found.trace_error is None
    assert found.top_eigenvalue == pytest.approx(2 * len(sizes), rel=1e-3)


def test_frozen_parameters_count_and_stay_frozen_and_gradients_stay():
    adapter = BowlAdapter.tiny()
    adapter.model.layer.bias.requires_grad_(False)
    adapter.model.layer.weight.grad = kept = torch.ones(3, 4)
    found = curvature(objective_of(adapter), probes=1, seed=0)
    assert found.elements == 15
    assert found.top_eigenvalue == pytest.approx(20, abs=0.02)
    assert not adapter.model.layer.bias.requires_grad
    assert adapter.model.layer.weight.grad is kept
    assert torch.equal(kept, torch.ones(3, 4))


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    adapter = BowlAdapter.tiny()
    adapter._loss = lambda context, target: adapter.model.layer.weight.sum()
    found = curvature(objective_of(adapter), probes=2, seed=0)
    assert (found.trace, found.trace_error) == (0, 0)


def test_where_the_loss_is_not_finite_there_is_no_eigenvalue():
    adapter = BowlAdapter.tiny()
    adapter._loss = lambda context, target: adapter.model.layer.weight.square().sum() * math.inf
    found = curvature(objective_of(adapter), probes=2, seed=0)
    assert found.top_eigenvalue is None
    assert not math.isfinite(found.trace)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 1


def test_a_model_without_second_derivative_says_so_in_one_line():
    adapter = FakeAdapter.tiny()
    adapter._loss = lambda context, target: OnceOnly.apply(adapter.model(context)).square().mean()
    with pytest.raises(NoHessian, match=r"no second derivative: .*@once_differentiable") as caught:
        curvature(objective_of(adapter), probes=1, seed=0)
    assert "\n" not in str(caught.value)


def test_coarse_weights_have_no_hessian():
    adapter = FakeAdapter.tiny()
    adapter.model.to(torch.bfloat16)
    with pytest.raises(NoHessian, match="bfloat16"):
        curvature(objective_of(adapter), probes=1, seed=0)


class Bug(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("a bug")


def test_an_error_that_has_nothing_to_do_with_derivatives_is_not_swallowed():
    adapter = FakeAdapter.tiny()
    adapter._loss = lambda context, target: Bug.apply(adapter.model(context)).square().mean()
    objective = objective_of(adapter)
    with pytest.raises(RuntimeError, match="a bug"):
        curvature(objective, probes=1, seed=0)


@pytest.mark.parametrize("module", ["scipy.sparse.linalg", "hessian_eigenthings"])
def test_without_a_package_of_the_hessian_one_line_says_how_to_get_it(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=re.escape("pip install 'sff_fast[landscape]'")):
        sff_fast.landscape(BowlAdapter.tiny, make_data(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the objective ------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_chosen_windows_in_eval_mode():
    adapter, data = FakeAdapter.tiny(), make_data()
    indices = choose_windows(len(data.val), 5, 3)
    whole = float(adapter.loss(data.val.batch(indices)).detach())
    adapter.model.train()
    value = Objective(adapter, data, indices, 2, 0, StopRequest()).value()
    assert value == pytest.approx(whole, rel=1e-6)  # sums in another order
    assert adapter.model.training


def test_windows_are_chosen_by_the_seed_without_repetition():
    first, again, other = (choose_windows(100, 30, seed).tolist() for seed in (1, 1, 2))
    assert first == again == sorted(set(first))
    assert len(first) == 30
    assert first != other
    assert choose_windows(7, 30, 0).tolist() == list(range(7))


def test_a_loss_that_draws_draws_the_same_numbers_every_time():
    adapter = FakeAdapter.tiny()
    adapter.on_loss = lambda batch: torch.rand(()) + float(np.random.rand())
    objective = objective_of(adapter)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert objective.value() == objective.value()
    assert torch.equal(torch.get_rng_state(), before)


# --- figures and verdict ------------------------------------------------------------


def test_the_rise_is_the_mean_within_half_of_the_span():
    axis = [-2.0, -1.0, 0.0, 1.0, 2.0]
    losses = [[1 + a * a + 2 * b * b for b in axis] for a in axis]
    assert rise(axis, losses) == pytest.approx((1 + 1 + 2 + 2) / 4)
    losses[2][3] = None
    assert rise(axis, losses) is None
    assert lowest(axis, losses) == {"a": 0.0, "b": 0.0, "loss": 1.0}


def test_the_verdict_names_the_flattest_and_what_is_not_finite():
    def centre(name, change):
        return {"name": name, "rise": change, "loss": 0.5}

    text = verdict(64, 1.0, [centre("pre-trained", 0.4), centre("smoothed", 0.1), centre("ff-seed0", None)])
    assert text.startswith(
        "Within a distance of 0.5 the loss changes on average by +0.4 around the pre-trained weights (loss 0.5)"
    )
    assert "flattest around the smoothed weights" in text
    assert "Around the ff-seed0 weights the loss is not finite" in text
    assert "flattest" not in verdict(64, 1.0, [centre("pre-trained", -0.4)])


# --- whole landscapes ------------------------------------------------------------


def tune(folder, change: float = 0.1):
    adapter = FakeAdapter.tiny()
    with torch.no_grad():
        adapter.model.head.weight += change
    folder.mkdir(parents=True)
    adapter.save(folder / "model")
    return folder


@pytest.fixture
def registered(monkeypatch):
    """``load`` finds the fake family."""
    monkeypatch.setattr(adapters, "load", lambda name, path, **options: FakeAdapter.load(path))


def whole(tmp_path, name="out", **options):
    options = {"grid": 5, "windows": 4, "probes": 2, "tuned": [tmp_path / "ff-seed0"], **options}
    return sff_fast.landscape(FakeAdapter.tiny, make_data(), out=tmp_path / name, **options)


def test_every_centre_has_its_grid_its_files_and_its_own_weights(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    result = whole(tmp_path, alpha=0.6, seed=3)
    assert [(c["name"], c["strategy"], c["alpha"], c["seed"]) for c in result.centres] == [
        ("pre-trained", "zero-shot", None, None),
        ("smoothed", "sff", 0.6, 3),
        ("ff-seed0", "ff", None, None),
    ]
    adapter = FakeAdapter.tiny()
    assert result.centres[0]["weights"] == weights_hash(adapter.model)
    smooth_(adapter.model, None, 0.6, 3)
    assert result.centres[1]["weights"] == weights_hash(adapter.model)
    data = make_data()
    objective = Objective(adapter, data, choose_windows(len(data.val), 4, 3), 64, 3, StopRequest())
    assert result.centres[1]["loss"] == objective.value()
    assert len({centre["loss"] for centre in result.centres}) == 3
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == result.metrics
    with open(tmp_path / "out" / "landscape.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 25
    written = {(line["centre"], float(line["a"]), float(line["b"])): float(line["loss"]) for line in lines}
    assert written["ff-seed0", -1.0, 0.5] == result.centres[2]["losses"][0][3]


def test_a_loss_that_is_not_finite_is_a_gap_in_the_grid(tmp_path):
    def make():
        adapter = FakeAdapter.tiny()
        start = adapter.model.head.weight.detach().clone()
        adapter.on_loss = lambda batch: None if torch.equal(start, adapter.model.head.weight) else torch.tensor(math.inf)
        return adapter

    result = sff_fast.landscape(make, make_data(), alpha=1, grid=5, windows=4, hessian=False, out=tmp_path / "out")
    (centre,) = result.centres
    assert math.isfinite(centre["loss"])
    assert centre["losses"][0] == [None] * 5
    assert centre["rise"] is None
    assert "not finite" in result.verdict
    assert (tmp_path / "out" / "landscape.csv").read_text().splitlines()[1] == "pre-trained,-1.0,-1.0,"


def test_one_model_is_in_memory_at_a_time(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    alive: list[weakref.ref] = []
    most = []

    def make():
        adapter = FakeAdapter.tiny()
        alive.append(weakref.ref(adapter.model))
        most.append(sum(reference() is not None for reference in alive))
        return adapter

    sff_fast.landscape(make, make_data(), grid=5, windows=2, hessian=False)
    assert len(most) == 1 + 2 * 2  # once to look, and each centre twice
    assert max(most) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_landscape_goes_on_to_the_same_bits(tmp_path, registered, number):
    tune(tmp_path / "ff-seed0")
    straight = whole(tmp_path, "straight")
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        whole(tmp_path, "halted", progress=StopAt("row 2 of 5", 8, number))  # in the middle of the second centre
    kept = (tmp_path / "halted" / "state" / "landscape.jsonl").read_text().splitlines()
    assert not (tmp_path / "halted" / "metrics.json").exists()
    assert 1 + 6 + 1 <= len(kept) < 1 + 3 * 6
    with pytest.raises(OutputError, match="--resume"):
        whole(tmp_path, "halted")
    resumed = whole(tmp_path, "halted", resume=True)
    assert steady(resumed.metrics) == steady(straight.metrics)
    assert (tmp_path / "halted" / "landscape.csv").read_bytes() == (tmp_path / "straight" / "landscape.csv").read_bytes()


def test_rows_that_are_there_are_not_measured_again(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    with pytest.raises(SystemExit):
        whole(tmp_path, "halted", progress=StopAt("row 3 of 5", 1))
    path = tmp_path / "halted" / "state" / "landscape.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    row = next(line for line in lines if line.get("what") == "0")
    row["losses"][0] = 123.0
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"centre": "pre-trained", "wha')  # and a line that a crash cut off
    result = whole(tmp_path, "halted", resume=True)
    assert result.centres[0]["losses"][0][0] == 123.0
    assert all(loss is not None and loss != 123.0 for loss in result.centres[0]["losses"][1])


def test_a_finished_landscape_is_read_back(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    first = whole(tmp_path)
    again = whole(tmp_path, resume=True)
    assert again.metrics == first.metrics
    with pytest.raises(CheckpointError, match=r"settings.seed: 0 then, 1 now"):
        whole(tmp_path, resume=True, seed=1)


def test_a_landscape_does_not_go_on_with_other_weights(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    with pytest.raises(SystemExit):
        whole(tmp_path, "halted", progress=StopAt("row 5 of 5", 11))  # in the last centre
    adapter = FakeAdapter.tiny()
    adapter.save(tmp_path / "ff-seed0" / "model", overwrite=True)
    with pytest.raises(CheckpointError, match=r"settings.weights.ff-seed0: .* then, .* now"):
        whole(tmp_path, "halted", resume=True)


def test_an_interrupted_landscape_of_other_settings_is_refused(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    with pytest.raises(SystemExit):
        whole(tmp_path, "halted", progress=StopAt("row 1 of 5", 1))
    with pytest.raises(CheckpointError, match=r"settings.grid: 5 then, 7 now"):
        whole(tmp_path, "halted", resume=True, grid=7)


def test_a_damaged_file_of_rows_is_refused_in_one_line(tmp_path, registered):
    tune(tmp_path / "ff-seed0")
    with pytest.raises(SystemExit):
        whole(tmp_path, "halted", progress=StopAt("row 2 of 5", 1))
    path = tmp_path / "halted" / "state" / "landscape.jsonl"
    path.write_bytes(path.read_bytes() + b"no json\n")
    with pytest.raises(CheckpointError, match="damaged"):
        whole(tmp_path, "halted", resume=True)


def test_tuned_models_of_one_name_are_told_apart(tmp_path, registered):
    folders = [tune(tmp_path / run / "ff-seed0") for run in ("first", "second")]
    result = whole(tmp_path, tuned=[folders[0], folders[1] / "model"], grid=5, hessian=False)
    assert [centre["name"] for centre in result.centres] == ["pre-trained", "smoothed", "first/ff-seed0", "second/ff-seed0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 4}, "grid must be an odd number"),
        ({"grid": 3}, "from 5 to 1001"),
        ({"grid": 0}, "grid must be an integer of at least 1"),
        ({"span": 0}, "span must be a finite number above 0"),
        ({"span": math.nan}, "span must be a finite number above 0"),
        ({"windows": 0}, "windows must be an integer of at least 1"),
        ({"probes": True}, "probes must be an integer of at least 1"),
        ({"tuned": ["x", "./x"]}, "given twice"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ArgumentError, match=message):
        sff_fast.landscape(FakeAdapter.tiny, make_data(), out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_do_the_task_of_the_data_is_refused_before_anything_is_written(tmp_path):
    table = make_table(900)
    masked = ImputationData(table, "0.4,0.3,0.3", 96, channel_independent=False)
    with pytest.raises(ArgumentError, match="ttm cannot do imputation: it can do forecast"):
        sff_fast.landscape(lambda: adapters.tiny("ttm"), masked, out=tmp_path / "out")
    series = AnomalyData(table, 600, (700, 710), 192, segment_length=24)
    with pytest.raises(ArgumentError, match="segment_length must be at least 96 for this timer model"):
        sff_fast.landscape(lambda: adapters.tiny("timer"), series, out=tmp_path / "out")
    with pytest.raises(ArgumentError, match="context"):
        sff_fast.landscape(lambda: adapters.tiny("timer"), ForecastData(table, "0.4,0.3,0.3", 95, 24), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_in_place_of_a_function_is_refused():
    with pytest.raises(ArgumentError, match="make_adapter must be a function"):
        sff_fast.landscape(FakeAdapter.tiny(), make_data())


# --- the families ------------------------------------------------------------

KINKED = ("chronos-2", "moirai-2", "timesfm-2.5-google")
"""Their losses are of quantiles, piecewise linear in the forecast: finite differences step over the kinks."""
COARSE = {"chronos-t5": 0.3, "moirai-moe": 0.05}
"""Curvature so small that rounding of the gradients shows in differences of them; experts that change along the step."""


@pytest.mark.parametrize("variant", marked())
def test_the_hessian_of_every_family_is_the_change_of_its_gradient(variant):
    adapter, case = adapters.tiny(variant), case_of(variant)
    lengths = {"context_length": case.context, "prediction_length": case.horizon}
    data = ForecastData(make_table(900), "0.4,0.3,0.3", **lengths, channel_independent=adapter.channel_independent)
    objective = Objective(adapter, data, choose_windows(len(data.val), 4, 0), 4, 0, StopRequest())
    before = bits(adapter.model)
    with Plane(adapter.model) as plane:
        plane.move(0.1, 0.1)
        assert math.isfinite(objective.value())
    assert bits(adapter.model) == before
    with differentiable(adapter.model) as parameters:
        product = Product(objective, parameters, lambda n: None)
        generator = torch.Generator().manual_seed(0)
        first, second = (v / np.linalg.norm(v) for v in torch.randn(2, product.size, generator=generator).numpy())
        along, other = product(first), product(second)
        # Sums of 1e4 to 1e6 float32 products that cancel; their size is that of the vectors.
        assert float(second @ along) == pytest.approx(float(first @ other), abs=1e-5 * float(np.linalg.norm(along)))
        changes = [central_difference(objective, parameters, first, step) for step in (0.1, 0.03, 0.01)]
    nearest = min(np.linalg.norm(change - along) / np.linalg.norm(along) for change in changes)
    if variant not in KINKED:
        assert nearest < COARSE.get(variant, 2e-3)


def central_difference(objective, parameters, direction: np.ndarray, step: float) -> np.ndarray:
    """The gradient's change along a direction, a step to both sides; the weights are as before afterwards."""
    kept = [parameter.detach().clone() for parameter in parameters]
    pieces = torch.from_numpy(direction).split([parameter.numel() for parameter in parameters])
    sides = []
    for distance in (step, -step, 0.0):
        with torch.no_grad():
            for parameter, start, piece in zip(parameters, kept, pieces):
                parameter.copy_(start + distance * piece.view(start.shape))
        if distance:
            sides.append(gradient(objective, parameters))
    return (sides[0] - sides[1]) / (2 * step)


def gradient(objective, parameters) -> np.ndarray:
    total = np.zeros(sum(parameter.numel() for parameter in parameters))
    for share, loss in objective.terms():
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if part is None else part for part, p in zip(parts, parameters)]
        total += share * torch.cat([part.reshape(-1) for part in parts]).double().numpy()
    return total
