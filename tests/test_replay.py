"""``rng="torch"``: bit for bit what building a second model gives."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import model_builders
import numpy as np
import pytest
import torch
from torch import nn

import sff_fast
from sff_fast.errors import ArgumentError, PlanError
from sff_fast.plan import InitPlan
from sff_fast.replay.program import program_from_json, program_to_json
from sff_fast.tracing import trace


class Holder(nn.Module):
    """A module with the given parameters."""

    def __init__(self, **tensors):
        super().__init__()
        for name, value in tensors.items():
            setattr(self, name, value if isinstance(value, (nn.Module, nn.Parameter)) else nn.Parameter(value))


def reference_(model, factory, alpha, seed):
    """What the paper's code does: a second model, then one interpolation a parameter."""
    torch.manual_seed(seed)
    second = factory()
    with torch.no_grad():
        for p, q in zip(model.parameters(), second.parameters(), strict=True):
            p.copy_(p * alpha + q * (1 - alpha))


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_parity(factory, seed=3, alpha=0.7, dtype=None, plan=None):
    """smooth_ with torch's numbers and the reference agree in every bit of every parameter."""
    torch.manual_seed(1000 + seed % 1000)
    ours = factory()
    if dtype is not None:
        ours.to(dtype)
    theirs = copy.deepcopy(ours)
    plan = trace(factory) if plan is None else plan
    state = torch.get_rng_state()
    report = sff_fast.smooth_(ours, plan, alpha=alpha, seed=seed, rng="torch")
    assert torch.equal(torch.get_rng_state(), state)
    reference_(theirs, factory, alpha, seed)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q)), f"{name} differs by {(p - q).abs().max()}"
    return report


PATTERNS = {
    "layers": lambda: nn.Sequential(nn.Linear(16, 30), nn.Conv2d(3, 5, 3), nn.LayerNorm(4), nn.PReLU(), nn.Bilinear(3, 4, 5)),
    "recurrent": lambda: nn.LSTM(8, 12, 2),
    "attention": lambda: nn.MultiheadAttention(16, 4),
    "deepcopied layers": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3),
    "padding row": lambda: nn.Embedding(40, 6, padding_idx=3),
    "discarded draws": lambda: Holder(a=nn.init.normal_(torch.rand(5, 7)), b=(torch.randn(9), torch.rand(3))[1]),
    "odd normals": lambda: Holder(a=torch.randn(3), b=torch.randn(15), c=torch.randn(16), d=torch.randn(33), e=torch.rand(1)),
    "transposed draw": lambda: Holder(a=torch.empty(40, 60).t().normal_(), b=torch.empty(4, 6).t().uniform_(-1, 1)),
    "transposed copy": lambda: Holder(a=torch.randn(40, 60).t().contiguous()),
    "views of one draw": lambda: (lambda flat: Holder(a=flat[:12].clone().view(3, 4), b=flat[12:20].clone()))(torch.randn(30)),
    "strided writes": lambda: Holder(a=_columns(), b=_rows()),
    "scaled": lambda: Holder(a=torch.randn(50, 20) * 0.02, b=1 - 2 * torch.rand(300), c=-torch.randn(17) / 3 + 0.1),
    "sums with alpha": lambda: Holder(
        a=torch.add(torch.randn(99), 0.3, alpha=0.7),
        b=torch.add(torch.full((99,), 0.3), torch.randn(99), alpha=0.7),
        c=torch.sub(torch.randn(99), 0.3, alpha=0.7),
        e=torch.full((99,), 0.3).sub(torch.rand(99), alpha=0.7),
    ),
    "normal with tensors": lambda: Holder(
        a=torch.normal(0.1, torch.full((40,), 0.3)),
        b=torch.normal(torch.full((40,), 0.1), 0.3),
        c=torch.normal(torch.full((40,), 0.1), torch.full((40,), 0.3)),
        d=torch.normal(0.1, 0.3, (40,)),
    ),
    "truncated normals": lambda: Holder(
        a=nn.init.trunc_normal_(torch.empty(30, 40), std=0.02),
        b=nn.init.trunc_normal_(torch.empty(500), std=1.0, a=0.5, b=2.0),
        c=nn.init.trunc_normal_(torch.empty(500), mean=0.0, std=1.0, a=2.0, b=5.0),
        d=torch.empty(3000).uniform_(-0.9, 0.9).erfinv_().mul_(0.02 * math.sqrt(2)).add_(0.1).clamp_(-2, 2),
    ),
    "recipes": lambda: Holder(
        a=nn.init.orthogonal_(torch.empty(6, 9), gain=2.0), b=nn.init.sparse_(torch.empty(10, 4), 0.3), c=torch.randn(4)
    ),
    "half precision": lambda: nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30)).to(torch.bfloat16),
    "drawn in half": lambda: Holder(a=torch.randn(40, dtype=torch.bfloat16), b=torch.rand(40, dtype=torch.float16)),
    "double": lambda: nn.Linear(7, 5, dtype=torch.float64),
    "fixed values": lambda: Holder(
        a=torch.arange(12.0).view(3, 4), b=torch.full((3,), 0.1, dtype=torch.float64), c=torch.rand(2)
    ),
    "parametrized": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)),
    "large": lambda: Holder(a=torch.randn(300, 1000), b=torch.rand(200_001)),
}


def _columns():
    w = torch.zeros(8, 5)
    for column in range(0, 5, 2):
        w[:, column].normal_()
    return w


def _rows():
    w = torch.randn(6, 20)
    w[1:3].uniform_(-1, 1)
    w[:, 4:6] = 0.5
    return w


@pytest.mark.parametrize("alpha", [0.7, 0.3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_has_the_bits_of_a_second_model(pattern, alpha):
    assert_parity(PATTERNS[pattern], alpha=alpha)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_filling_gives_the_bits_of_a_new_model_whatever_was_there(pattern):
    torch.manual_seed(1)
    ours = PATTERNS[pattern]()
    with torch.no_grad():
        for p in ours.parameters():
            p.fill_(math.nan)
    report = sff_fast.fill_(ours, PATTERNS[pattern], seed=9, rng="torch")
    torch.manual_seed(9)
    for (name, p), q in zip(ours.named_parameters(), PATTERNS[pattern]().parameters(), strict=True):
        assert torch.equal(bits(p), bits(q)), name
    assert report.rng == "torch"
    assert sff_fast.smoothing_of(ours) == []


def test_filling_keeps_the_sign_of_a_zero():
    model = Holder(a=torch.ones(3), b=torch.rand(2))
    sff_fast.fill_(model, lambda: Holder(a=torch.full((3,), -0.0), b=torch.rand(2)), rng="torch")
    assert torch.signbit(model.a).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype_than_its_constructor_rounds_as_plain_torch_does(dtype):
    report = assert_parity(PATTERNS["layers"], dtype=dtype)
    assert report.dtypes
    assert report.rng == "torch"


def test_parameters_that_are_not_contiguous_take_their_own_elements():
    def factory():
        return nn.Conv2d(6, 5, 3).to(memory_format=torch.channels_last)

    assert_parity(factory)


def test_tied_weights_are_mixed_once():
    def factory():
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        model[1].weight = model[0].weight
        return model

    assert_parity(factory)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs hardware: a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_on_a_cuda_device_get_the_bits_of_the_cpu(dtype):
    for pattern in ("layers", "truncated normals", "views of one draw", "strided writes"):
        torch.manual_seed(1)
        ours = PATTERNS[pattern]().to(dtype)
        theirs = copy.deepcopy(ours).cuda()
        sff_fast.smooth_(ours, PATTERNS[pattern], seed=4, rng="torch")
        sff_fast.smooth_(theirs, PATTERNS[pattern], seed=4, rng="torch")
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(bits(p), bits(q.cpu())), f"{pattern}: {name}"


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, 2**64 - 1])
def test_every_seed_that_torch_takes_is_taken(seed):
    assert_parity(PATTERNS["layers"], seed=seed)


def test_a_plan_that_went_through_a_file_still_replays(tmp_path):
    trace(PATTERNS["truncated normals"]).save(tmp_path / "plan.json")
    assert_parity(PATTERNS["truncated normals"], plan=InitPlan.load(tmp_path / "plan.json"))


def test_the_program_survives_json():
    program = trace(lambda: Holder(a=torch.rand(5).half() * 2, b=nn.init.trunc_normal_(torch.empty(4), a=-math.inf))).program
    assert program_from_json(json.loads(json.dumps(program_to_json(program)))) == program


def test_a_program_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    trace(lambda: nn.Linear(3, 2)).save(path)
    content = json.loads(path.read_text())
    content["program"]["draws"][0]["arguments"][0] = -0.5
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="its draw program does not have the recorded sha256"):
        InitPlan.load(path)


def test_pattern_alphas_leave_the_rest_alone_and_keep_the_order_of_draws():
    factory = PATTERNS["layers"]
    torch.manual_seed(5)
    ours = factory()
    theirs = copy.deepcopy(ours)
    sff_fast.smooth_(ours, factory, alpha={"1.*": 0.4}, seed=8, rng="torch")
    untouched = copy.deepcopy(theirs)
    reference_(theirs, factory, 0.4, 8)
    for (name, p), q, before in zip(ours.named_parameters(), theirs.parameters(), untouched.parameters()):
        assert torch.equal(p, q if name.startswith("1.") else before)


def test_a_part_of_a_model_takes_its_part_of_the_draws():
    factory = PATTERNS["deepcopied layers"]
    torch.manual_seed(5)
    whole = factory()
    stage, theirs = copy.deepcopy(whole.layers[1]), copy.deepcopy(whole)
    sff_fast.smooth_(stage, factory, seed=8, rng="torch", prefix="layers.1.", subset=True)
    reference_(theirs, factory, 0.7, 8)
    for p, q in zip(stage.parameters(), theirs.layers[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_draws_on_the_meta_device_consume_nothing():
    def factory():
        nn.Linear(4, 4, device="meta")
        return nn.utils.skip_init(nn.Linear, 3, 3).apply(lambda module: module.reset_parameters())

    assert_parity(factory)


# ---------------------------------------------------------------------- what cannot be replayed
def _rejection():
    values = torch.randn(4)
    while (values.abs() > 1).any():
        values = torch.randn(4)
    return Holder(a=values)


REFUSED = {
    "reads": (_rejection, r"draw 0 \(randn of shape \(4,\)\): the constructor looks at its values"),
    "numpy": (lambda: Holder(a=torch.rand(3), b=torch.from_numpy(np.random.rand(4))), "'b': .*; use rng='philox'"),
    "python": (lambda: Holder(a=torch.full((3,), random.random()), b=torch.rand(2)), "'a': "),
    "exp": (
        lambda: Holder(a=torch.rand(3), b=torch.randn(4).exp()),
        r"draw 1 \(randn of shape \(4,\)\), which 'b' holds as .*exp",
    ),
    "norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), r"draw 0 \(uniform_ .*, which '.*original0' holds"),
    "unknown": (lambda: Holder(a=torch.empty(4).exponential_(), b=torch.rand(3)), "exponential_"),
    "discarded": (lambda: Holder(a=(torch.randperm(5), torch.rand(3))[1]), r"draw 0 \(randperm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_replayed_is_an_error_that_names_it_and_nothing_is_written(case):
    factory, message = REFUSED[case]
    model = factory()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match=message):
        sff_fast.smooth_(model, factory, rng="torch")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_draw_after_the_last_parameter_does_not_matter():
    assert_parity(lambda: Holder(a=torch.rand(3), b=(lambda w: (w, torch.randperm(5))[0])(torch.randn(20))))


def test_an_overridden_parameter_has_no_draw():
    plan = trace(lambda: nn.Linear(3, 2)).override("bias", sff_fast.Normal(0, 1))
    with pytest.raises(PlanError, match=r"'bias': no draw of the constructor gives Normal\(0, 1\), it was overridden"):
        sff_fast.smooth_(nn.Linear(3, 2), plan, rng="torch")


def test_a_plan_without_a_program_says_so():
    plan = InitPlan(trace(lambda: nn.Linear(3, 2)).parameters.values())
    with pytest.raises(PlanError, match="holds none: trace the factory again"):
        sff_fast.smooth_(nn.Linear(3, 2), plan, rng="torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rng": "mt19937"}, "rng must be one of philox, torch, got 'mt19937'"),
        ({"rng": "torch", "backend": "reference"}, "backend must be 'auto' with rng='torch'"),
        ({"rng": "torch", "rounding": "stochastic"}, "rounding must be 'nearest' with rng='torch'"),
        ({"rng": "torch", "threads": 2}, "threads must be None with rng='torch'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        sff_fast.smooth_(nn.Linear(3, 2), lambda: nn.Linear(3, 2), **options)


# ---------------------------------------------------------------------- memory
def test_memory_stays_below_one_scratch_tensor():
    # In a process of its own, because the high-water mark of resident memory never falls.
    program = """
        import resource
        import torch
        from torch import nn
        import sff_fast

        def factory():
            return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(6)), nn.Embedding(4096, 2048))

        small = nn.Linear(300, 300)
        sff_fast.smooth_(small, lambda: nn.Linear(300, 300), rng="torch")
        model, plan = factory(), sff_fast.trace(factory)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sff_fast.smooth_(model, plan, rng="torch")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    root = Path(sff_fast.__file__).parents[1]
    command = [sys.executable, "-c", textwrap.dedent(program)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)
    # The largest draw has 32 MB of the model's 128 MB; 3 MB for chunks of 256 kB and what the allocator keeps.
    assert grown < (32 + 3) * 1024


# ---------------------------------------------------------------------- the families
@pytest.mark.parametrize("name", model_builders.marked())
def test_the_families_have_the_bits_of_a_second_model(name):
    needs = model_builders.DEPENDENCY[name]
    if needs is not None:
        pytest.importorskip(needs, reason=f"{needs} is not installed: make models-env")
    report = assert_parity(lambda: model_builders.BUILDERS[name]("tiny"))
    assert report.elements == sum(p.numel() for p in model_builders.BUILDERS[name]("tiny").parameters())


def test_the_published_tiny_time_mixer_has_the_bits_of_a_second_model():
    pytest.importorskip("tsfm_public", reason="granite-tsfm is not installed: make models-env")
    assert_parity(lambda: model_builders.BUILDERS["ttm"]("r2"))


PUBLISHED = """
    import math, sys
    sys.path.insert(0, {tests!r})
    import torch
    from model_builders import BUILDERS
    import sff_fast

    def build():
        return BUILDERS[{name!r}]({size!r})

    def kilobytes(field):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    def pattern_(model):
        for i, p in enumerate(model.parameters()):
            p.detach().fill_(0.5 + i % 7)
        return model

    sff_fast.smooth_(BUILDERS[{name!r}]("tiny"), lambda: BUILDERS[{name!r}]("tiny"), rng="torch")
    plan, ours = sff_fast.trace(build), pattern_(build())
    before = kilobytes("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
    sff_fast.smooth_(ours, plan, seed=11, rng="torch")
    grown = kilobytes("VmHWM") - before
    draws = [math.prod(record.shape) * record.dtype.itemsize for record in plan.program]
    torch.manual_seed(11)
    second, wrong = build(), []
    with torch.no_grad():
        for i, ((name, p), q) in enumerate(zip(ours.named_parameters(), second.parameters(), strict=True)):
            q.mul_(1 - 0.7).add_(torch.full((1,), 0.5 + i % 7, dtype=q.dtype) * 0.7)
            wrong += [] if torch.equal(p, q) else [name]
    print(grown, max(draws), any(record.op == "trunc_normal_" for record in plan.program), *wrong[:3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [(name, sizes[1]) for name, sizes in model_builders.SIZES.items()])
def test_published_sizes_have_the_bits_of_a_second_model_and_take_the_memory_of_one_draw(name, size):
    needs = model_builders.DEPENDENCY[name]
    if needs is not None:
        pytest.importorskip(needs, reason=f"{needs} is not installed: make models-env")
    program = textwrap.dedent(PUBLISHED.format(tests=str(Path(__file__).parent), name=name, size=size))
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(sff_fast.__file__).parents[1])
    grown, largest, truncated, *wrong = result.stdout.split()
    assert wrong == []
    # trunc_normal_ takes 3.3 times the tensor for itself; 4 MB for chunks of 256 kB and what the allocator keeps.
    assert int(grown) * 1024 <= int(largest) * (4.3 if truncated == "True" else 1) + (4 << 20)
