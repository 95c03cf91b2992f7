"""Files made to do harm: nothing runs, nothing is written or read elsewhere, and the message names the file."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import marked, require
from safetensors.torch import load_file, save_file

import sff_fast
from sff_fast.cli import main
from sff_fast.cli.app import cli
from sff_fast.errors import ArgumentError, CheckpointError, DataError, OutputError, SffFastError
from sff_fast.training import state
from sff_fast.training.output import WRITTEN, check_output

ROOT = Path(__file__).resolve().parents[1]
SECRET = b"the key of somebody's house"


def build() -> torch.nn.Module:
    return torch.nn.Linear(3, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two files with an index, and a secret outside of it."""
    (tmp_path / "secret").write_bytes(SECRET)
    inside = tmp_path / "in"
    inside.mkdir()
    save_file({"weight": torch.ones(2, 3)}, inside / "a.safetensors")
    save_file({"bias": torch.ones(2)}, inside / "b.safetensors")
    write_index(inside, {"weight": "a.safetensors", "bias": "b.safetensors"})
    (inside / "config.json").write_text("{}")
    return tmp_path


def write_index(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def everything(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its bytes, and every link with where it leads."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


# ---------------------------------------------------------------------- code
class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def torch_archive(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_a_foreign_member(data: bytes, name: str) -> bytes:
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, SECRET)
    return buffer.getvalue()


PICKLES = {
    "torch archive": lambda p: torch_archive({"state_dict": {"x": p}}),
    "torch archive, the object alone": torch_archive,
    "a plain pickle of protocol 2": lambda p: pickle.dumps(p, protocol=2),
    "a plain pickle of protocol 4": lambda p: pickle.dumps({"state_dict": p}, protocol=4),
    "os.system by name": lambda p: b"cos\nsystem\n(S'touch " + str(p.path).encode() + b"'\ntR.",
    "a member outside of the archive": lambda p: with_a_foreign_member(torch_archive({"x": p}), "../../ran"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("case", PICKLES)
def test_no_pickled_object_runs(tmp_path, case, suffix):
    ran = tmp_path / "ran"
    path = tmp_path / "deep" / "er" / f"weights{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(PICKLES[case](Payload(ran)))
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=f"weights{suffix}") as caught:
        sff_fast.load("timer", path, allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before
    pickle.loads(pickle.dumps(Payload(ran)))  # the payload works where it is trusted
    assert ran.exists()


def pickled(variant: str, folder: Path) -> Path:
    """A checkpoint of a family's tiny model with its weights in a file of torch.save."""
    adapter = sff_fast.tiny(variant)
    adapter.save(folder)
    (weights,) = folder.glob("*.safetensors")
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    return folder


@pytest.mark.parametrize("variant", marked())
def test_every_family_reads_a_pickled_file_on_request_only(tmp_path, variant):
    require(variant)
    path = pickled(variant, tmp_path / "in")
    if variant == "timesfm-2.5-google":  # published as one file of safetensors: nothing else is read, on request neither
        for allow in (False, True):
            with pytest.raises(CheckpointError, match="must be a file of safetensors"):
                sff_fast.load(variant, path, allow_pickle=allow)
        return
    for attempt in (sff_fast.load, functools.partial(sff_fast.load, allow_pickle=False)):
        with pytest.raises(CheckpointError, match=r"on request only: pass allow_pickle=True \(--allow-pickle\)") as caught:
            attempt(variant, path)
        assert "\n" not in str(caught.value)
        assert "pytorch_model.bin" in str(caught.value)
    adapter = sff_fast.load(variant, path, allow_pickle=True)
    expected = sff_fast.tiny(variant).model.state_dict()
    for found in (adapter, adapter.reload()):
        tensors = found.model.state_dict()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name].to(tensors[name].dtype)) for name in expected)
    with pytest.raises(CheckpointError, match="on request only"):  # the permission ended with the call
        sff_fast.load(variant, path)


def test_the_command_line_reads_a_pickled_file_on_request_only(tmp_path, capsys):
    path = pickled("timer", tmp_path / "in")
    command = ["plan", "--family", "timer", "--checkpoint", str(path)]
    assert main(command) == 2
    assert "(--allow-pickle)" in capsys.readouterr().err
    assert main([*command, "--allow-pickle"]) == 0
    assert main(command) == 2
    shared = [name for name, c in cli.commands.items() if any("--checkpoint" in option.opts for option in c.params)]
    assert {"plan", "finetune", "compare", "evaluate", "forecast", "sweep", "landscape"} <= set(shared)
    for name in shared:
        assert any("--allow-pickle" in option.opts for option in cli.commands[name].params), name


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_permission_is_true_or_false(tmp_path, value):
    with pytest.raises(ArgumentError, match=f"allow_pickle must be True or False, got {value!r}"):
        sff_fast.load("timer", tmp_path, allow_pickle=value)


def test_a_pickled_array_is_no_data(tmp_path):
    ran = tmp_path / "ran"
    np.save(tmp_path / "data.npy", np.array([Payload(ran)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"data\.npy"):
        sff_fast.read_table(tmp_path / "data.npy")
    assert not ran.exists()


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_package_unpickles_nowhere_and_asks_for_no_remote_code():
    found = []
    for path in (ROOT / "sff_fast").rglob("*.py"):
        for name, call in calls(ast.parse(path.read_text())):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "eval", "exec", "os.system"):
                found.append((path.name, name))
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append((path.name, name))
            if name == "np.load" and options.get("allow_pickle") != "False":
                found.append((path.name, name))
            if options.get("trust_remote_code", "False") != "False":
                found.append((path.name, "trust_remote_code"))
            if name.endswith(("extractall", "from_pretrained", "snapshot_download", "hf_hub_download", "urlopen")):
                found.append((path.name, name))
    assert found == []


# ---------------------------------------------------------------------- paths
@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a.bin", "a.safetensors/"]
)
def test_an_index_may_name_files_of_its_own_folder_alone(folder, name):
    save_file({"weight": torch.ones(2, 3)}, folder / "secret.safetensors")
    write_index(folder / "in", {"weight": name, "bias": "b.safetensors"})
    before = everything(folder)
    with pytest.raises(CheckpointError, match=r"index\.json") as caught:
        sff_fast.smooth_checkpoint(folder / "in", folder / "out", build)
    assert repr(name) in str(caught.value)
    assert everything(folder) == before


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors"])
def test_a_family_reads_no_file_that_an_index_names_elsewhere(tmp_path, name):
    adapter = sff_fast.tiny("chronos-bolt")
    adapter.save(tmp_path / "in")
    (tmp_path / "in/model.safetensors").rename(tmp_path / "secret.safetensors")
    write_index(tmp_path / "in", dict.fromkeys(load_file(tmp_path / "secret.safetensors"), name))
    with pytest.raises(CheckpointError, match=r"index\.json|no weights") as caught:
        sff_fast.load("chronos-bolt", tmp_path / "in")
    assert "\n" not in str(caught.value)


def test_a_plan_reads_no_table_elsewhere(tmp_path):
    plan = sff_fast.trace(lambda: torch.nn.ParameterList([torch.nn.Parameter(torch.arange(4.0))]))
    (tmp_path / "deep").mkdir()
    plan.save(tmp_path / "deep/plan.json")
    content = json.loads((tmp_path / "deep/plan.json").read_text())
    assert "tables" in content
    os.rename(tmp_path / "deep/plan.safetensors", tmp_path / "plan.safetensors")
    content["tables"]["file"] = "../plan.safetensors"
    (tmp_path / "deep/plan.json").write_text(json.dumps(content))
    with pytest.raises(SffFastError, match=r"deep/plan\.(json|safetensors)"):
        sff_fast.InitPlan.load(tmp_path / "deep/plan.json")


def test_a_save_lists_no_file_elsewhere(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    store = state.StateStore(tmp_path / "state")
    saved = store.save({"step": 1}, {"model": {"a": torch.ones(2)}}, {})
    assert store.load() is not None
    content = json.loads((saved / "state.json").read_text())
    content["files"]["../../secret"] = {"sha256": hashlib.sha256(SECRET).hexdigest(), "bytes": len(SECRET)}
    content["sha256"] = state._digest({"files": content["files"], "content": content["content"]})
    (saved / "state.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"does not list the files beside it"):
        store.load()


# ---------------------------------------------------------------------- links
@pytest.mark.parametrize("name", ["tokenizer.json", "sub/notes.txt", "pytorch_model.bin"])
@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_a_link_out_of_a_checkpoint_is_not_copied(folder, name, target):
    link = folder / "in" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(folder / "secret" if target == "absolute" else os.path.relpath(folder / "secret", link.parent))
    before = everything(folder)
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint") as caught:
        sff_fast.smooth_checkpoint(folder / "in", folder / "out", build)
    assert str(link) in str(caught.value)
    assert everything(folder) == before


def test_a_linked_folder_is_not_followed(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/key").write_bytes(SECRET)
    (folder / "in/more").symlink_to(folder / "elsewhere")
    sff_fast.smooth_checkpoint(folder / "in", folder / "out", build)
    assert SECRET not in everything(folder / "out").values()


def test_links_within_a_checkpoint_and_those_of_a_hubs_cache_are_followed(folder):
    (folder / "in/same.json").symlink_to("config.json")
    cache = folder / "models--x"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    snapshot = cache / "snapshots/0a1b"
    os.rename(folder / "in", snapshot)
    for number, name in enumerate(("config.json", "a.safetensors", "b.safetensors")):
        os.rename(snapshot / name, cache / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    sff_fast.smooth_checkpoint(snapshot, folder / "out", build)
    assert (folder / "out/config.json").read_text() == (folder / "out/same.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in (folder / "out").rglob("*"))


def test_in_place_does_not_write_through_a_link(folder):
    os.rename(folder / "in/a.safetensors", folder / "shared.safetensors")
    (folder / "in/a.safetensors").symlink_to(folder / "shared.safetensors")
    before = everything(folder)
    with pytest.raises(CheckpointError, match=r"a\.safetensors' is a link to .*shared\.safetensors', which others may use"):
        sff_fast.smooth_checkpoint(folder / "in", None, build, in_place=True)
    assert everything(folder) == before


@pytest.mark.parametrize("name", [*WRITTEN, "state/3.safetensors", "model/config.json", "runs/ff-seed0/log.jsonl"])
def test_a_run_does_not_write_through_a_link_out_of_its_folder(tmp_path, name):
    (tmp_path / "secret").write_bytes(SECRET)
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(OutputError, match="is a link out of the output folder"):
        check_output(tmp_path / "out", resume=False, overwrite=True, source=None)
    assert (tmp_path / "secret").read_bytes() == SECRET
    link.unlink()
    (tmp_path / "out/own").write_text("x")
    link.symlink_to(os.path.relpath(tmp_path / "out/own", link.parent))
    (tmp_path / "out/log.jsonl").touch()  # a run was here
    check_output(tmp_path / "out", resume=False, overwrite=True, source=None)


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_that_says_too_much_is_refused_before_it_is_read(tmp_path, length, capsys):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b"\0" * 64)
    sff_fast.trace(build).save(tmp_path / "plan.json")
    assert main(["smooth", str(path), str(tmp_path / "out.safetensors"), "--plan", str(tmp_path / "plan.json")]) == 2
    assert "bomb.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 2**65]},
        {"dtype": "F32", "shape": [1e300], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [2**64, 2**64 + 16]},
        {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 16]},
    ],
)
def test_shapes_and_offsets_beyond_all_bounds_are_refused(tmp_path, entry):
    header = json.dumps({"weight": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(SffFastError, match=r"x\.safetensors|'weight'"):
        sff_fast.smooth_checkpoint(path, tmp_path / "out.safetensors", build, alpha=0.7)
    assert os.listdir(tmp_path) == ["x.safetensors"]
