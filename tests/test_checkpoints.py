"""Smoothing checkpoints on disk: bits, layouts, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import sff_fast
from sff_fast.checkpoints import chunks, smoothing
from sff_fast.checkpoints.layout import INDEX
from sff_fast.errors import ArgumentError, CheckpointError, OutputError, PlanError

pytestmark = pytest.mark.filterwarnings("ignore:.*copied unchanged:UserWarning")


class Mixed(nn.Module):
    """Every distribution, boxes within a parameter, a tied parameter, a buffer and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(37, 53)
        self.table = nn.Embedding(61, 24, padding_idx=3)
        self.columns = nn.Parameter(torch.empty(29, 31))
        self.cut = nn.Parameter(torch.empty(17, 19, 5))
        self.ones = nn.Parameter(torch.ones(7))
        self.square = nn.Parameter(torch.empty(12, 12))
        self.scalar = nn.Parameter(torch.empty(()))
        self.register_buffer("steps", torch.arange(5.0))
        self.register_buffer("count", torch.tensor(3))
        with torch.no_grad():
            self.columns[:, :11].uniform_(-1, 1)
            self.columns[:, 11:].normal_()
            nn.init.trunc_normal_(self.cut, std=0.5, a=-1.0, b=1.0)
            self.cut[:, 4:9, 1:3].fill_(0.25)
            nn.init.orthogonal_(self.square)
            self.scalar.uniform_()
        self.head = nn.Linear(24, 61, bias=False)
        self.head.weight = self.table.weight


def pretrained(dtype=torch.float32) -> Mixed:
    torch.manual_seed(5)
    return Mixed().to(dtype)


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def plan():
    return sff_fast.trace(Mixed)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 512 bytes, so that nearly every tensor is cut several times."""
    monkeypatch.setattr(smoothing, "cut", lambda header: chunks.cut(header, 512))


def as_folder(tensors: dict[str, torch.Tensor], folder) -> None:
    """A Hugging Face folder of two files and an index."""
    folder.mkdir()
    names = sorted(tensors)
    halves = (names[::2], names[1::2])
    weight_map = {}
    for i, half in enumerate(halves, 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(half, file))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "sub").mkdir()
    (folder / "sub" / "vocabulary.txt").write_text("x")
    (folder / "pytorch_model.bin").write_bytes(b"old weights")


def read_folder(folder) -> dict[str, torch.Tensor]:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    found = {}
    for file in set(weight_map.values()):
        found.update(load_file(folder / file))
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_file_gets_the_bits_that_smooth_gives_to_the_loaded_model(tmp_path, plan, small_pieces, dtype, rounding):
    model = pretrained(dtype)
    save_file(state(model), tmp_path / "in.safetensors", {"format": "pt"})
    before = (tmp_path / "in.safetensors").read_bytes()
    report = sff_fast.smooth_checkpoint(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, 0.6, 11, rounding=rounding, threads=1
    )
    sff_fast.smooth_(model, plan, 0.6, 11, rounding=rounding)
    assert_same(load_file(tmp_path / "out.safetensors"), state(model))
    assert (tmp_path / "in.safetensors").read_bytes() == before
    assert report.unknown == ("steps",)
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors", "out.safetensors"]


def test_a_folder_keeps_its_layout(tmp_path, plan):
    model = pretrained()
    as_folder(state(model), tmp_path / "in")
    report = sff_fast.smooth_checkpoint(
        tmp_path / "in", tmp_path / "out", plan, {"first.*": 0.2, "*": 0.9}, 2, rounding="nearest"
    )
    sff_fast.smooth_(model, plan, {"first.*": 0.2, "*": 0.9}, 2)
    assert_same(read_folder(tmp_path / "out"), state(model))
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
        "sff_fast.json",
        "sub/vocabulary.txt",
    ]
    assert report.left_out == ("pytorch_model.bin",)
    assert (tmp_path / "out" / INDEX).read_bytes() == (tmp_path / "in" / INDEX).read_bytes()


def test_both_names_of_a_tied_parameter_get_one_draw(tmp_path, plan):
    model = pretrained()
    save_file(state(model), tmp_path / "in.safetensors")
    sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, 0.5)
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["head.weight"], found["table.weight"])
    one = state(model)
    del one["head.weight"]
    save_file(one, tmp_path / "one.safetensors")
    sff_fast.smooth_checkpoint(tmp_path / "one.safetensors", tmp_path / "two.safetensors", plan, 0.5)
    assert torch.equal(load_file(tmp_path / "two.safetensors")["table.weight"], found["table.weight"])


def test_names_without_the_plans_prefix_are_mapped(tmp_path):
    inner = nn.Linear(9, 9)
    save_file(inner.state_dict(), tmp_path / "in.safetensors")
    outer = sff_fast.trace(lambda: nn.ModuleDict({"net": nn.Linear(9, 9)}))
    sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", outer, 0.3, 4, prefix="net.")
    sff_fast.smooth_(inner, outer, 0.3, 4, prefix="net.")
    assert_same(load_file(tmp_path / "out.safetensors"), state(inner))


def test_elements_that_are_not_aligned_in_the_file_are_smoothed_right(tmp_path, plan, small_pieces):
    """The format allows a float32 tensor right behind an odd number of bytes."""
    model = pretrained()
    tensors = {name: value for name, value in state(model).items() if value.is_floating_point()}
    header, data = {"odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"abc"
    for name, value in tensors.items():
        raw = value.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    (tmp_path / "in.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, 0.6, 1)
    sff_fast.smooth_(model, plan, 0.6, 1)
    found = load_file(tmp_path / "out.safetensors")
    assert bytes(found.pop("odd").tolist()) == b"abc"
    assert_same(found, {name: state(model)[name] for name in tensors})


def test_the_result_says_how_it_was_made_and_is_not_smoothed_twice_by_mistake(tmp_path, plan):
    save_file(state(pretrained()), tmp_path / "in.safetensors", {"format": "pt"})
    report = sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, 0.6, 7)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["sff_fast"])
    assert metadata["format"] == "pt"
    assert record == report.record
    smoothed = record["smoothing"][0]
    assert (smoothed["seed"], smoothed["plan_hash"], smoothed["factors"]) == (7, plan.hash, [["*", 0.6, 0.4]])
    hashes = record["sha256"]["in.safetensors"]
    assert hashes["source"] == sff_fast.files.sha256(tmp_path / "in.safetensors")
    content = (tmp_path / "out.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 64 == 0
    assert hashes["data"] == hashlib.sha256(content[start:]).hexdigest()
    with pytest.raises(ArgumentError, match=r"was smoothed before \(seed 7, plan .*\): take the pre-trained .*--again"):
        sff_fast.smooth_checkpoint(tmp_path / "out.safetensors", tmp_path / "twice.safetensors", plan)
    assert not (tmp_path / "twice.safetensors").exists()
    again = sff_fast.smooth_checkpoint(
        tmp_path / "out.safetensors", tmp_path / "twice.safetensors", plan, again=True, hashes=False
    )
    assert [one["seed"] for one in again.record["smoothing"]] == [7, 0]
    assert "sha256" not in again.record


def test_a_model_loaded_from_the_result_knows_that_it_was_smoothed(tmp_path):
    adapter = sff_fast.tiny("timer")
    adapter.save(tmp_path / "in")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sff_fast.smooth_checkpoint(tmp_path / "in", tmp_path / "out", adapter.plan(), 0.6, 9)
    loaded = sff_fast.load("timer", tmp_path / "out")
    assert sff_fast.smoothing_of(loaded.model)[0]["seed"] == 9
    alone = tmp_path / "alone.safetensors"
    shutil.copy(next((tmp_path / "out").glob("*.safetensors")), alone)
    shutil.copy(tmp_path / "out" / "config.json", tmp_path)
    assert sff_fast.smoothing_of(sff_fast.load("timer", alone).model)[0]["seed"] == 9
    with pytest.raises(ArgumentError, match="was smoothed before"):
        sff_fast.smooth_(loaded.model, adapter.plan())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_tensors_that_the_plan_does_not_have_are_named(tmp_path, plan):
    save_file(state(pretrained()), tmp_path / "in.safetensors")
    with pytest.warns(UserWarning, match="1 tensor of the checkpoint .* is copied unchanged: 'steps'"):
        sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan)


def changed(**edits):
    """The state with tensors replaced, or removed where the value is None."""
    tensors = state(pretrained())
    for name, value in edits.items():
        name = name.replace("__", ".")
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        (changed(ones=None), {}, PlanError, r"\(1 difference\): 'ones' is missing in the files \(subset=True"),
        (changed(ones=torch.ones(8)), {}, PlanError, r"'ones' has shape \(8,\), the plan has \(7,\)"),
        (changed(ones=torch.ones(7, dtype=torch.int32)), {}, PlanError, "'ones' is stored as I32, which cannot be smoothed"),
        (changed(), {"alpha": 1.5}, ArgumentError, "alpha must be a number from 0 to 1 .* got 1.5"),
        (changed(), {"alpha": {"nothing.*": 0.5}}, ArgumentError, "no parameter matches the pattern 'nothing"),
        (changed(), {"seed": 1.5}, ArgumentError, "seed must be an integer, got 1.5"),
        (changed(), {"rounding": "up"}, ArgumentError, "rounding must be one of nearest, stochastic, got 'up'"),
        (changed(), {"threads": 0}, ArgumentError, "threads must be an integer of at least 1, got 0"),
        (changed(), {"in_place": True}, ArgumentError, "in_place=True takes no dst"),
        (changed(), {"prefix": "net."}, PlanError, "the files have .* name the difference by prefix="),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, plan, tensors, options, error, message):
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(error, match=message) as caught:
        sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, **options)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_outputs_that_must_not_be_written_are_refused(tmp_path, plan, monkeypatch):
    source = tmp_path / "in.safetensors"
    save_file(state(pretrained()), source)
    as_folder(state(pretrained()), tmp_path / "folder")
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    (tmp_path / "link.safetensors").symlink_to(source)
    for src, dst, error, message in (
        (source, source, ArgumentError, r"dst is src or lies in it .*--in-place"),
        (source, tmp_path / "link.safetensors", ArgumentError, "dst is src or lies in it"),
        (tmp_path / "folder", tmp_path / "folder" / "sub" / "x", ArgumentError, "dst is src or lies in it"),
        (source, tmp_path / "there.safetensors", OutputError, r"exists already: .*\(--overwrite\)"),
        (source, tmp_path / "folder", OutputError, "cannot write the file .*: something else has that name"),
        (tmp_path / "folder", tmp_path / "there.safetensors", OutputError, "cannot write the folder .*: something else"),
        (source, tmp_path / "no" / "x.safetensors", OutputError, "does not exist; create it first"),
        (source, None, ArgumentError, "give dst, or in_place=True"),
    ):
        with pytest.raises(error, match=message):
            sff_fast.smooth_checkpoint(src, dst, plan)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(OutputError, match=r"it takes 0.00 GB, 0.00 GB are free; free some space"):
        sff_fast.smooth_checkpoint(source, tmp_path / "out.safetensors", plan)
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["folder", "in.safetensors", "link.safetensors", "there.safetensors"]


def test_an_output_is_replaced_only_by_a_complete_one(tmp_path, plan, monkeypatch):
    save_file(state(pretrained()), tmp_path / "in.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"precious")

    def stop(self, chunk, memory):
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks.Smoother, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, overwrite=True)
    assert (tmp_path / "out.safetensors").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors", "out.safetensors"]
    monkeypatch.undo()
    sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, overwrite=True)
    assert set(load_file(tmp_path / "out.safetensors")) == set(state(pretrained()))


def test_temporaries_of_a_run_that_was_killed_are_cleared_up(tmp_path, plan):
    save_file(state(pretrained()), tmp_path / "in.safetensors")
    (tmp_path / ".out.safetensors.0123456789abcdef.sff-tmp").write_bytes(b"left over")
    sff_fast.smooth_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan)
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors", "out.safetensors"]


def test_a_source_that_shrinks_while_it_is_read_is_noticed(tmp_path, plan, monkeypatch):
    source = tmp_path / "in.safetensors"
    save_file(state(pretrained()), source)
    original = smoothing.cut

    def shrink(header):
        os.truncate(source, header.size - 100)
        return original(header)

    monkeypatch.setattr(smoothing, "cut", shrink)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        sff_fast.smooth_checkpoint(source, tmp_path / "out.safetensors", plan)
    assert os.listdir(tmp_path) == ["in.safetensors"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "has no weight_map of tensors to files"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"ones": "../x.safetensors"}}'), "names '../x.safetensors': expected"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"ones": "x.safetensors"}}'), "cannot read .*x.safetensors"),
        (
            lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace("00001-of", "00002-of", 1)),
            "puts the tensor .* into 'model-00002-of-00002.safetensors', but it is in 'model-00001",
        ),
        (lambda f: (f / INDEX).unlink(), r"holds several \(model-00001.*\) and no model.safetensors.index.json"),
        (lambda f: [path.unlink() for path in f.glob("model*")], "holds no safetensors file: expected model.safetensors"),
        (lambda f: (f / "sff_fast.json").write_text('{"smoothing": 3}'), "does not say how the model was smoothed"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, plan, edit, message):
    as_folder(state(pretrained()), tmp_path / "in")
    edit(tmp_path / "in")
    with pytest.raises(CheckpointError, match=message):
        sff_fast.smooth_checkpoint(tmp_path / "in", tmp_path / "out", plan)
    assert os.listdir(tmp_path) == ["in"]
