"""``sff-fast smooth``."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import as_folder

import sff_fast
from sff_fast.cli import main

# Timer's fixed positions are a buffer.
pytestmark = pytest.mark.filterwarnings("ignore:.*copied unchanged:UserWarning")


@pytest.fixture
def checkpoint(tmp_path):
    """A Timer's folder, and its plan in a file."""
    adapter = sff_fast.tiny("timer")
    adapter.save(tmp_path / "in")
    adapter.plan().save(tmp_path / "plan.json")
    return tmp_path


def weights(folder) -> dict[str, torch.Tensor]:
    # Copied: the library maps the file, which smoothing in place writes to.
    return {name: value.clone() for name, value in load_file(next(folder.glob("*.safetensors"))).items()}


def test_plan_and_family_give_the_bits_of_smooth(checkpoint, capsys):
    adapter = sff_fast.load("timer", checkpoint / "in")
    sff_fast.smooth_(adapter.model, adapter.plan(), {"proj.*": 1.0, "*": 0.6}, 5)
    expected = adapter.model.state_dict()
    common = ["--alpha", "proj.*=1,*=0.6", "--seed", "5", "--quiet"]
    for name, how in (("a", ["--plan", str(checkpoint / "plan.json")]), ("b", ["--family", "timer"])):
        assert main(["smooth", str(checkpoint / "in"), str(checkpoint / name), *how, *common]) == 0
        assert f"{checkpoint / name}: " in capsys.readouterr().out
        found = weights(checkpoint / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_progress_goes_to_stderr_and_json_to_stdout(checkpoint, capsys):
    arguments = ["smooth", str(checkpoint / "in"), str(checkpoint / "out"), "--family", "timer", "--json"]
    assert main(arguments) == 0
    streams = capsys.readouterr()
    report = json.loads(streams.out)
    assert report["record"]["smoothing"][0]["factors"] == [["*", 0.7, 1 - 0.7]]
    assert "smoothing: " in streams.err
    assert "MB at most" in streams.err


def test_what_was_not_copied_is_said(tmp_path, capsys):
    as_folder({"weight": torch.ones(3, 3), "bias": torch.ones(3)}, tmp_path / "in")
    sff_fast.trace(lambda: torch.nn.Linear(3, 3)).save(tmp_path / "plan.json")
    assert main(["smooth", str(tmp_path / "in"), str(tmp_path / "out"), "--plan", str(tmp_path / "plan.json"), "--quiet"]) == 0
    assert "not copied, since they hold the weights in another form: pytorch_model.bin" in capsys.readouterr().out


def test_in_place_overwrites(checkpoint, capsys):
    before = weights(checkpoint / "in")
    assert main(["smooth", str(checkpoint / "in"), "--in-place", "--family", "timer", "--quiet"]) == 0
    after = weights(checkpoint / "in")
    assert not torch.equal(before["proj.weight"], after["proj.weight"])
    assert main(["smooth", str(checkpoint / "in"), "--in-place", "--family", "timer", "--quiet"]) == 2
    assert "was smoothed before (seed 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IN", "OUT"], "give one of --plan, --family and --factory"),
        (["IN", "OUT", "--plan", "p", "--family", "timer"], "give one of --plan, --family and --factory"),
        (["IN", "--family", "timer"], "give DST, or --in-place without it"),
        (["IN", "OUT", "--in-place", "--family", "timer"], "give DST, or --in-place without it"),
        (["ABSENT", "OUT", "--plan", "PLAN"], "cannot read the checkpoint"),
        (["IN", "OUT", "--plan", "ABSENT"], "cannot read the file"),
        (["IN", "OUT", "--plan", "PLAN", "--alpha", "1.5"], "expected a number from 0 to 1"),
        (["IN", "OUT", "--plan", "PLAN", "--seed", "-1"], "expected an integer from 0"),
        (["IN", "IN/config.json", "--plan", "PLAN"], "dst is src or lies in it"),
        (["IN", "OUT", "--factory", "nothing"], "--factory must be MODULE:CALLABLE"),
    ],
)
def test_wrong_input_is_one_line_with_code_2_and_nothing_is_written(checkpoint, capsys, arguments, message):
    there = sorted(os.listdir(checkpoint))
    words = {"IN": "in", "OUT": "out", "ABSENT": "absent", "PLAN": "plan.json", "IN/config.json": "in/config.json"}
    given = [str(checkpoint / words[word]) if word in words else word for word in arguments]
    assert main(["smooth", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("sff-fast: error: ")
    assert sorted(os.listdir(checkpoint)) == there


def test_bfloat16_is_rounded_as_asked(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 40).to(torch.bfloat16)
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    plan = sff_fast.trace(lambda: torch.nn.Linear(40, 40))
    plan.save(tmp_path / "plan.json")
    arguments = ["--plan", str(tmp_path / "plan.json"), "--rounding", "stochastic", "--quiet"]
    assert main(["smooth", str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), *arguments]) == 0
    sff_fast.smooth_(model, plan, rounding="stochastic")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["weight"], model.weight)


# ---------------------------------------------------------------------- pipes
class Terminal(io.BytesIO):
    def isatty(self):
        return True


def piped(monkeypatch, given: bytes, *arguments: object, stdin: io.BytesIO | None = None) -> tuple[int, bytes]:
    """Exit code and standard output of ``smooth`` with these bytes on standard input."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin or io.BytesIO(given)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
    code = main(["smooth", *map(str, arguments)])
    return code, out.getvalue()


def test_a_pipe_gives_the_bits_of_files_in_both_directions(checkpoint, monkeypatch, capfd):
    source, plan = checkpoint / "in/model.safetensors", ["--plan", checkpoint / "plan.json", "--seed", "3"]
    assert main(["smooth", str(source), str(checkpoint / "file.safetensors"), *map(str, plan), "--quiet"]) == 0
    expected = load_file(checkpoint / "file.safetensors")
    monkeypatch.setenv("TMPDIR", str(checkpoint / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (checkpoint / "scratch").mkdir()
    code, through = piped(monkeypatch, source.read_bytes(), "-", "-", *plan)
    assert code == 0
    (checkpoint / "piped.safetensors").write_bytes(through)
    assert piped(monkeypatch, source.read_bytes(), "-", checkpoint / "in.safetensors", *plan, "--quiet")[0] == 0
    code, out = piped(monkeypatch, b"", source, "-", *plan, "--no-hashes")
    assert code == 0
    (checkpoint / "out.safetensors").write_bytes(out)
    for name in ("piped", "in", "out"):
        found = load_file(checkpoint / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert os.listdir(checkpoint / "scratch") == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "standard input holds no safetensors file: it begins with b''"),
        (lambda data: b"PK\x03\x04 a zip file or text", "standard input holds no safetensors file"),
        (lambda data: b"\xff" * 64, "standard input holds no safetensors file"),
        (lambda data: data[:60], "standard input ended within the safetensors header"),
        (lambda data: data[:-7], "standard input ended 7 bytes too early"),
        (lambda data: data + b"x", "standard input goes on behind the end of the safetensors file"),
        (lambda data: data[:8] + b"[" + data[9:], "its header does not say where tensors lie"),
        (
            lambda data: data[:8] + data[8:].replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
            "is no valid safetensors file",
        ),
    ],
)
def test_what_is_no_checkpoint_in_a_pipe_gives_no_byte_out(checkpoint, monkeypatch, capfd, damage, message):
    data = (checkpoint / "in/model.safetensors").read_bytes()
    there = sorted(os.listdir(checkpoint))
    code, out = piped(monkeypatch, damage(data), "-", "-", "--plan", checkpoint / "plan.json")
    assert (code, out) == (2, b"")
    error = capfd.readouterr().err
    assert message in error
    assert error.startswith("sff-fast: error: ")
    assert sorted(os.listdir(checkpoint)) == there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "--in-place", "--plan", "PLAN"], "--in-place needs a file or folder, not standard input"),
        (["-", "OUT", "--family", "timer"], "--family loads SRC, which standard input (-) does not allow"),
        (["FILE", "-", "--plan", "PLAN", "--json"], "--json and the weights cannot both go to standard output"),
        (["IN", "-", "--plan", "PLAN"], "a folder cannot go to standard output"),
        (["-", "OUT", "--plan", "PLAN"], "standard input (-) is a terminal"),
    ],
)
def test_what_a_pipe_cannot_do_is_refused(checkpoint, monkeypatch, capfd, arguments, message):
    words = {"IN": "in", "FILE": "in/model.safetensors", "OUT": "out.safetensors", "PLAN": "plan.json"}
    given = [checkpoint / words[word] if word in words else word for word in arguments]
    code, out = piped(monkeypatch, b"", *given, stdin=Terminal())
    assert (code, out) == (2, b"")
    assert message in capfd.readouterr().err


def test_a_reader_that_is_gone_is_one_line(checkpoint, monkeypatch, capfd):
    class Gone(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Gone()))
    assert (
        main(["smooth", str(checkpoint / "in/model.safetensors"), "-", "--plan", str(checkpoint / "plan.json"), "--quiet"]) == 2
    )
    assert "cannot write to standard output: broken pipe" in capfd.readouterr().err
