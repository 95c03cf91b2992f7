"""Init plans: content, files, edits and checks."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sff_fast.distributions import Constant, Materialized, Normal, TruncNormal, Uniform
from sff_fast.errors import PlanError
from sff_fast.plan import InitPlan, ParameterPlan, Segment, digest
from sff_fast.recipes import draw_recipe
from sff_fast.tracing import trace

F32 = torch.float32


def whole(name, shape, distribution, draw=None, dtype=F32, aliases=()):
    numel = torch.Size(shape).numel()
    return ParameterPlan(name, shape, dtype, (Segment.whole(distribution, numel, draw or name),), aliases)


@pytest.fixture
def plan() -> InitPlan:
    table = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return InitPlan(
        [
            whole("emb.weight", (6, 4), Normal(0, 0.02), aliases=("head.weight",)),
            ParameterPlan(
                "mix",
                (4, 4),
                torch.bfloat16,
                (Segment.whole(Uniform(-1, 1), 16, "mix"), Segment(Constant(0), (4,), (1,), 4, "", (0,), 0)),
            ),
            whole("copy", (6, 4), Normal(0, 0.04), draw="emb.weight"),
            whole("pos", (2, 2), Materialized("table", "fixed", digest=digest(table))),
            whole("q", (4, 3), Materialized("recipe", "orthogonal", recipe="orthogonal", gain=2.0, shape=(4, 3))),
            ParameterPlan("none", (0, 3), F32, ()),
        ],
        tables={("pos", 0): table},
    )


def test_it_behaves_like_a_mapping_and_knows_aliases(plan):
    assert list(plan) == ["emb.weight", "mix", "copy", "pos", "q", "none"]
    assert len(plan) == 6
    assert plan["head.weight"] is plan["emb.weight"]
    assert "head.weight" in plan
    assert "body.weight" not in plan
    with pytest.raises(PlanError, match=r"no parameter 'emb.wieght' .did you mean 'emb.weight'"):
        plan["emb.wieght"]


def test_printed_it_is_an_aligned_table_with_totals(plan):
    lines = str(plan).splitlines()
    assert lines[0].split() == ["parameter", "shape", "dtype", "distribution", "draw", "note"]
    column = lines[0].index("distribution")
    assert lines[2][column:].startswith("Normal(0, 0.02)")
    assert lines[2].endswith("also head.weight")
    assert lines[3][column:].startswith("Uniform(-1, 1); Constant(0) at 4+[4:1]")
    assert lines[4].split()[-1] == "emb.weight"
    assert "6 parameters, 80 elements" in lines[-2]
    assert "mixed boxes: 1 (16)" in lines[-2]
    assert lines[-1] == f"hash {plan.hash}"


# ---------------------------------------------------------------------- validity
def test_a_name_that_appears_twice_is_refused():
    with pytest.raises(PlanError, match="'a' appears twice"):
        InitPlan([whole("a", (2,), Normal()), whole("b", (2,), Normal(), aliases=("a",))])


def test_a_part_without_a_distribution_is_named():
    segments = (Segment(Normal(), (2, 4), (4, 1), 0, "w", (4, 1), 0),)
    with pytest.raises(PlanError, match=r"'w' of shape \(3, 4\) is uninitialised memory: 4 of its 12 .* first is \[2, 0\]"):
        ParameterPlan("w", (3, 4), F32, segments)
    with pytest.raises(PlanError, match="none of its elements is written"):
        ParameterPlan("w", (3, 4), F32, ())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((Normal(), (2,), (1, 1), 0, "w", (1,), 0), "as many sizes as strides"),
        ((Normal(), (0,), (1,), 0, "w", (1,), 0), "sizes above 0"),
        ((Normal(), (2,), (0,), 0, "w", (1,), 0), "strides must be above 0"),
        ((Normal(), (2,), (1,), -1, "w", (1,), 0), "offset of at least 0"),
        ((Normal(), (3,), (1,), 0, "w", (-1,), 1), "reaches element -1"),
        ((Normal(), (2.0,), (1,), 0, "w", (1,), 0), "must be integers"),
        (("normal", (2,), (1,), 0, "w", (1,), 0), "must be a distribution"),
    ],
)
def test_an_impossible_segment_is_refused(arguments, match):
    with pytest.raises(PlanError, match=match):
        Segment(*arguments)


def test_a_segment_outside_of_the_parameter_is_refused():
    with pytest.raises(PlanError, match=r"reaches element 4, the parameter of shape .4,. has 4"):
        ParameterPlan("w", (4,), F32, (Segment(Normal(), (2,), (4,), 0, "w", (1,), 0),))


def test_a_table_must_be_there_and_fit():
    parameter = whole("p", (2,), Materialized("table", "fixed", digest=digest(torch.ones(2))))
    with pytest.raises(PlanError, match="table of segment 0 of 'p' is missing"):
        InitPlan([parameter])
    with pytest.raises(PlanError, match="has 3 values, expected 2"):
        InitPlan([parameter], tables={("p", 0): torch.ones(3)})
    with pytest.raises(PlanError, match="recorded sha256"):
        InitPlan([parameter], tables={("p", 0): torch.zeros(2)})


# ---------------------------------------------------------------------- hash
def test_the_hash_is_that_of_the_content_alone(plan):
    same = InitPlan(plan.parameters.values(), tables=plan._tables, versions={"torch": "0"}, notes=["hello"])
    assert same.hash == plan.hash
    assert same == plan
    changes = {
        "dtype": whole("w", (4,), Normal(), dtype=torch.float16),
        "shape": whole("w", (2, 2), Normal()),
        "name": whole("v", (4,), Normal()),
        "draw": whole("w", (4,), Normal(), draw="v"),
        "alias": whole("w", (4,), Normal(), aliases=("v",)),
        "distribution": whole("w", (4,), Normal(0, 1.0000001)),
        "none": whole("w", (4,), Normal()),
    }
    assert len({InitPlan([parameter]).hash for parameter in changes.values()}) == len(changes)


def test_the_hash_is_known():
    # A change of this value makes all saved plans of users look changed: it needs a new schema version.
    assert (
        InitPlan([whole("w", (2, 3), Normal(0, 0.5))]).hash == "e43bc2562bc69d43a4165d76f73039fa0bf622399c722826ceac7c38e0d9e5c7"
    )


# ---------------------------------------------------------------------- files
def test_a_saved_plan_is_loaded_as_it_was(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    loaded = InitPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.parameters == plan.parameters
    assert loaded.versions == plan.versions
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "plan.safetensors"]
    assert loaded.materialize("pos", 0, seed=9).tolist() == [1, 2, 3, 4]
    assert json.loads((tmp_path / "plan.json").read_text())["schema"] == 1


def test_a_plan_without_tables_is_one_file(tmp_path):
    InitPlan([whole("w", (2,), TruncNormal(0, 1, -2, 2))]).save(tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert InitPlan.load(tmp_path / "plan.json")["w"].segments[0].distribution == TruncNormal(0, 1, -2, 2)


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("schema"), "no schema version"),
        (lambda c: c.update(schema=2), "plan schema 2, this version of sff_fast reads 1"),
        (lambda c: c.update(hash="0" * 64), "was changed"),
        (lambda c: c["parameters"][0].update(shape=[4, 6]), "was changed"),
        (lambda c: c["parameters"][0].update(dtype="float17"), "unknown dtype 'float17'"),
        (lambda c: c["parameters"][0].pop("name"), "not a valid init plan"),
        (lambda c: c.pop("versions"), "not a valid init plan"),
        (lambda c: c["parameters"].append(3), "not a valid init plan"),
        (lambda c: c["tables"].update(sha256="0"), "does not have the sha256"),
        (lambda c: c["tables"].update(file="gone.safetensors"), "gone.safetensors', which is missing"),
    ],
)
def test_a_changed_file_is_refused(plan, tmp_path, change, match):
    plan.save(tmp_path / "plan.json")
    _edit(tmp_path / "plan.json", change)
    with pytest.raises(PlanError, match=match):
        InitPlan.load(tmp_path / "plan.json")


def test_changed_tables_are_refused(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    raw = bytearray((tmp_path / "plan.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "plan.safetensors").write_bytes(raw)
    with pytest.raises(PlanError, match="changed or is damaged"):
        InitPlan.load(tmp_path / "plan.json")


def test_files_that_are_no_plan_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(PlanError, match=r"a.json"):
        InitPlan.load(tmp_path / "a.json")
    with pytest.raises(PlanError, match=r"b.json"):
        InitPlan.load(tmp_path / "b.json")
    with pytest.raises(PlanError, match="a plan is a JSON file"):
        InitPlan([]).save(tmp_path / "p.safetensors")


# ---------------------------------------------------------------------- values
def test_a_recipe_depends_on_seed_and_draw_and_is_orthogonal(plan):
    q = plan.materialize("q", 0, seed=3).reshape(4, 3)
    assert torch.allclose(q.T @ q, 4 * torch.eye(3), atol=1e-5)  # a few ulp of the entries' size 4
    recipe = plan["q"].segments[0].distribution
    assert torch.equal(q, draw_recipe(recipe, "q", 3))
    assert not torch.equal(q, draw_recipe(recipe, "q", 4))
    assert not torch.equal(q, draw_recipe(recipe, "other", 3))


def test_recipes_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    sparse = Materialized("recipe", "sparse", recipe="sparse", sparsity=0.5, std=1.0, gain=3.0, shape=(10, 4))
    values = draw_recipe(sparse, "s", 0)
    assert torch.equal(values, draw_recipe(sparse, "s", 0))
    assert (values == 0).sum(0).tolist() == [5] * 4
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_of_a_recipe_is_taken_by_its_strides():
    recipe = Materialized("recipe", "orthogonal", recipe="orthogonal", shape=(4, 3))
    parameter = ParameterPlan("t", (3, 4), F32, (Segment(recipe, (3, 4), (4, 1), 0, "t#1", (1, 3), 0),))
    assert torch.equal(InitPlan([parameter]).materialize("t", 0, 5).reshape(3, 4), draw_recipe(recipe, "t#1", 5).T)


def test_values_of_an_elementwise_segment_are_not_stored(plan):
    with pytest.raises(PlanError, match=r"Normal\(0, 0.02\): it is elementwise"):
        plan.materialize("emb.weight", 0, 0)
    with pytest.raises(PlanError, match="there is no segment 4"):
        plan.materialize("mix", 4, 0)


def test_sample_gives_one_parameter_in_its_dtype(plan):
    sample = plan.sample("mix", 1)
    assert (sample.shape, sample.dtype) == ((4, 4), torch.bfloat16)
    assert sample[1].tolist() == [0] * 4
    assert (sample[0] != 0).all()
    assert plan.sample("pos", 1).tolist() == [[1, 2], [3, 4]]
    # One draw: both hold the same standard normal values, each scaled by one fp32 rounding.
    assert torch.allclose(plan.sample("copy", 1), 2 * plan.sample("emb.weight", 1), rtol=1e-6)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.randn(5, 4))
        self.g = nn.Parameter(self.v.detach().norm(dim=1))


def test_opaque_values_belong_to_the_draw_they_were_computed_from():
    plan = trace(Opaque)
    for seed in (0, 7):
        # norm in fp32 of four values: a few ulp
        assert torch.allclose(plan.sample("v", seed).norm(dim=1), plan.sample("g", seed), rtol=1e-5)
    assert not torch.equal(plan.sample("g", 0), plan.sample("g", 7))


def test_without_its_factory_a_plan_has_opaque_values_of_one_seed(tmp_path):
    plan = trace(Opaque)
    plan.save(tmp_path / "plan.json", seed=3)
    loaded = InitPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert torch.equal(loaded.sample("g", 3), plan.sample("g", 3))
    with pytest.raises(PlanError, match=r"'g' is opaque and seed 4 needs the factory .*sample of seed 3"):
        loaded.sample("g", 4)


# ---------------------------------------------------------------------- override
def test_override_replaces_what_matches_and_leaves_the_rest(plan):
    other = plan.override("m*", Normal(0, 0.5))
    assert other["mix"].segments == (Segment.whole(Normal(0, 0.5), 16, "mix"),)
    assert other["emb.weight"] == plan["emb.weight"]
    assert plan["mix"].segments[0].distribution == Uniform(-1, 1)
    assert other.hash != plan.hash
    assert "overridden" in other.notes[-1]


def test_an_overridden_parameter_gets_a_draw_of_its_own_where_others_use_its_name(plan):
    other = plan.override("head.*", Uniform(0, 1))
    assert other["emb.weight"].segments[0].draw == "emb.weight#1"
    assert other["copy"].segments[0].draw == "emb.weight"
    assert plan.override("copy", Uniform(0, 1))["copy"].segments[0].draw == "copy"


def test_override_with_a_recipe_takes_the_shape_of_the_parameter(plan):
    given = Materialized("recipe", "mine", recipe="orthogonal", shape=(1, 1))
    assert plan.override("emb.weight", given)["emb.weight"].segments[0].distribution.shape == (6, 4)


def test_override_drops_the_table_of_what_it_replaces(plan):
    other = plan.override("pos", Constant(0))
    assert other["pos"].segments == (Segment(Constant(0), (4,), (1,), 0, "", (0,), 0),)


def test_override_says_what_is_wrong(plan):
    with pytest.raises(PlanError, match=r"no parameter matches 'heads.*'"):
        plan.override("heads.*", Normal())
    with pytest.raises(PlanError, match="takes an elementwise distribution or a recipe"):
        plan.override("mix", Materialized("opaque", "x"))


# ---------------------------------------------------------------------- check
def parameters(plan):
    return {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in plan.parameters.items()}


def test_a_fitting_model_passes_and_other_dtypes_are_reported(plan):
    model = parameters(plan)
    assert plan.check(model) == []
    model["q"] = model["q"].to(torch.bfloat16)
    assert plan.check(model.items()) == [("q", torch.float32, torch.bfloat16)]


def test_all_differences_are_listed_at_once(plan):
    model = parameters(plan)
    model["q"] = torch.zeros(3, 4)
    model["extra"] = torch.zeros(1)
    del model["mix"]
    with pytest.raises(PlanError, match="3 differences") as caught:
        plan.check(model)
    assert "'q' has shape (3, 4), the plan has (4, 3)" in str(caught.value)
    assert "'extra' is not in the plan" in str(caught.value)
    assert "'mix' is missing in the model" in str(caught.value)


def test_a_subset_of_the_plan_is_enough_on_request(plan):
    assert plan.check({"q": torch.zeros(4, 3)}, subset=True) == []
    with pytest.raises(PlanError, match="'z' is not in the plan"):
        plan.check({"z": torch.zeros(4, 3)}, subset=True)


def test_a_model_may_use_an_alias_but_not_two_tensors_for_one_parameter(plan):
    model = parameters(plan)
    model["head.weight"] = model.pop("emb.weight")
    assert plan.check(model) == []
    model["emb.weight"] = model["head.weight"]
    assert plan.check(model) == []
    model["emb.weight"] = model["head.weight"].clone()
    with pytest.raises(PlanError, match="one parameter in the plan and two in the model"):
        plan.check(model)
