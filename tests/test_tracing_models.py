"""The tracer on the classes of the eight families: tiny models against really constructed ones, published sizes in memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import model_builders
import pytest

import sff_fast
from sff_fast.distributions import Constant, Materialized
from sff_fast.tracing import trace
from sff_fast.verification import verify

ELEMENTWISE = {"uniform", "normal", "trunc_normal", "constant"}

RECIPES = {"moment": {"orthogonal": 1}, "units": {"table": 1}}
"""Segments that are no draws: MOMENT's head of patches is orthogonal, UniTS's positions are sines and cosines. Everything
else is elementwise."""

BOXED = {"moirai": {"param_proj", "in_proj"}}
"""Builders with parameters of several boxes, and a part of the names of all that have them."""

PUBLISHED = {
    # parameters and tensors of really constructed models
    "timer:67m": (67_397_728, 133),
    "timer_hf:84m": (84_142_080, 116),
    "units:x32": (373_464, 120),
    "units:x64": (1_057_912, 120),
    "units:x128": (3_459_000, 120),
    "timesfm:200m": (231_289_280, 232),
    "timesfm2_hf:500m": (498_828_960, 813),
    "moment:small": (38_483_232, 79),
    "moirai:small": (13_827_528, 94),
    "moirai:large": (310_970_624, 310),
    "moirai2:small": (11_387_208, 85),
    "moirai_moe:small": (117_025_800, 655),
    "moirai_moe:base": (935_066_592, 1285),
    "chronos_t5:8m": (8_394_496, 89),
    "chronos_t5:710m": (708_963_328, 509),
    "chronos_bolt:8m": (8_652_672, 101),
    "chronos_bolt:200m": (205_292_928, 269),
    "chronos2:base": (119_477_664, 170),
    "ttm:r2": (805_280, 134),
    "sundial:128m": (128_329_680, 212),
}


def builder(name):
    """The builder of a family, or a skip where its package is not installed."""
    needs = model_builders.DEPENDENCY[name]
    if needs is not None:
        pytest.importorskip(needs, reason=f"{needs} is not installed: make models-env")
    return model_builders.BUILDERS[name]


def kinds(plan):
    """Kind of segment -> number of segments; a recipe under its own name."""
    found = Counter()
    for parameter in plan.parameters.values():
        for segment in parameter.segments:
            distribution = segment.distribution
            found[distribution.recipe or distribution.kind if isinstance(distribution, Materialized) else distribution.kind] += 1
    return found


# ---------------------------------------------------------------------- tiny
@pytest.mark.parametrize("name", model_builders.marked())
def test_a_tiny_model_is_drawn_as_its_plan_says(name):
    build = builder(name)
    plan = trace(lambda: build("tiny"))
    report = verify(lambda: build("tiny"), plan, seeds=(1, 2, 3))
    assert report.ok, f"\n{report}"
    found = kinds(plan)
    assert {kind: n for kind, n in found.items() if kind not in ELEMENTWISE} == RECIPES.get(name, {})
    assert [p.name for p in plan.parameters.values()] == [n for n, _ in build("tiny").named_parameters()]
    assert plan.notes == ()


@pytest.mark.parametrize("name", model_builders.marked())
def test_only_models_that_write_parts_of_parameters_have_boxes(name):
    build = builder(name)
    boxed = [p.name for p in trace(lambda: build("tiny")).parameters.values() if len(p.segments) > 1]
    assert bool(boxed) == (name in BOXED)
    assert all(any(part in parameter for part in BOXED[name]) for parameter in boxed)


@pytest.mark.slow
def test_norm_weights_are_what_the_class_says():
    build = builder("chronos_t5")
    plan = trace(lambda: build("tiny"))
    norms = {p.segments[0].distribution for p in plan.parameters.values() if "layer_norm" in p.name}
    assert norms == {Constant(0.05000000074505806)}


@pytest.mark.slow
def test_the_class_decides_the_distribution_of_one_family():
    google, hub = builder("timesfm"), builder("timesfm25_hf")
    assert kinds(trace(lambda: google("tiny")))["normal"] == 0
    assert kinds(trace(lambda: hub("tiny")))["normal"] > 0


# ---------------------------------------------------------------------- published sizes
LARGE = {"timesfm2_hf", "timesfm3"}
"""Builders whose smallest published size needs 6 GB for three models at a time; their tiny size is checked."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in model_builders.BUILDERS if name not in LARGE])
def test_a_published_size_is_drawn_as_its_plan_says(name):
    build = builder(name)
    size = model_builders.SIZES[name][1]
    report = verify(lambda: build(size), trace(lambda: build(size)), seeds=(1, 2))
    assert report.ok, f"\n{report}"


MEMORY = """
    import resource, sys
    sys.path.insert(0, {tests!r})
    from model_builders import BUILDERS
    import sff_fast

    sff_fast.trace(lambda: BUILDERS[{name!r}]("tiny"))
    buffers = []

    def factory():
        model = BUILDERS[{name!r}]({size!r})
        buffers.append(sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()))
        return model

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = sff_fast.trace(factory)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    kinds = sorted({{s.distribution.kind for p in plan.parameters.values() for s in p.segments}})
    print(sum(p.numel for p in plan.parameters.values()), len(plan), grown // 1024, buffers[0] >> 20, *kinds)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [f"{name}:{size}" for name, sizes in model_builders.SIZES.items() for size in sizes if size != "tiny"]
)
def test_a_published_size_is_traced_without_its_memory(model):
    # In a process of its own: the high-water mark of resident memory never falls.
    name, size = model.split(":")
    builder(name)
    program = MEMORY.format(tests=str(Path(__file__).parent), name=name, size=size)
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    root = Path(sff_fast.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    parameters, tensors, grown, buffers, *found = result.stdout.split()
    if model in PUBLISHED:
        assert (int(parameters), int(tensors)) == PUBLISHED[model]
    assert set(found) <= ELEMENTWISE | {"recipe", "table"}
    # Tables of positions, which are buffers, are computed for real: up to three times their size while they are made.
    assert int(grown) <= 20 + 3 * int(buffers)
