"""What may go wrong beside a run: disks, permissions, clocks, memory, other runs. Nothing is lost; one line says what it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import training_fakes
from killing import Moment, contents, differences
from test_cli import LENGTHS, MODEL, QUICK, good_columns, write_csv
from training_fakes import CONTEXT, HORIZON, FakeAdapter, StopAt

from sff_fast import files, locks
from sff_fast.adapters import tiny
from sff_fast.adapters.timer import TimerAdapter
from sff_fast.cli import main
from sff_fast.data import ForecastData, read_table
from sff_fast.errors import ExhaustedError, OutputError
from sff_fast.landscapes import landscape
from sff_fast.training import compare, exhausted, finetune, sweep
from sff_fast.training.state import StateStore

ROOT = Path(__file__).parents[1]
OPTIONS = {"epochs": 2, "batch_size": 25, "seed": 3}
quick, data = training_fakes.quick, training_fakes.data
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `quick` does for each test, which begins after this
    finetune(FakeAdapter.tiny(), data, "ff", out=out, **OPTIONS)
    torch.set_num_threads(threads)
    return out


def tune(data, out: Path, **options) -> None:
    finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS | options)


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder of somebody who is bound by permissions: root, who is not, becomes nobody in the block."""
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        if root:
            os.chown(folder, 65534, 65534)
            os.setresuid(65534, 65534, 0)
        try:
            yield folder
        finally:
            if root:
                os.setresuid(0, 0, 0)


def refused(capsys, *arguments: object) -> str:
    """The one line with which the command line refuses something."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("sff-fast: error: ")
    return lines[0]


# --- the disk -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_more_bytes() -> Iterator[None]:
    """Every write fails; unlike a full disk this needs nobody's permission."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def broken_off(data, out: Path, count: int, fault: Callable[[], contextlib.AbstractContextManager[None]]) -> str | None:
    """A run in which something breaks at the count-th call that changes files; what is said, or None where nothing was."""
    with contextlib.ExitStack() as stack:
        moment = Moment("files", count, lambda: stack.enter_context(fault()))
        try:
            with moment:
                tune(data, out)
        except OutputError as error:
            return str(error)
    return None


def calls_of(data, out: Path) -> int:
    with Moment("files", float("inf"), None) as moment:
        tune(data, out)
    return moment.seen["files"]


@pytest.mark.parametrize("step", [11, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_takes_no_more_bytes_at_any_write_loses_nothing(data, whole, tmp_path, step):
    total = calls_of(data, tmp_path / "counted")
    said = []
    for count in range(1, total + 1, step):
        out = tmp_path / str(count)
        said.append(broken_off(data, out, count, no_more_bytes))
        assert [path.name for path in out.rglob("*") if ".sff-" in path.name] == []
        if said[-1] is not None:
            assert re.fullmatch(r"cannot write '/\S+': file too large; raise the limit on the size of files or .*", said[-1])
            saves = StateStore(out / "state")
            assert (saves.load() is not None) == any((out / "state").glob("save-*"))
        tune(data, out)
        assert differences(whole, out) == [], count
    assert total > 100
    assert sum(one is not None for one in said) > 0.7 * len(said)


@pytest.mark.slow
def test_a_full_disk_at_any_write_loses_nothing(data, tmp_path):
    """A small tmpfs that is filled up at every call in turn, in a namespace of its own."""
    mine = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = [*mine, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs hardware: the system lets this user mount nothing, also in a namespace of its own")
    command = [*mine, sys.executable, str(ROOT / "tests" / "full_disk.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) > 100
    assert [case for case in cases if case["different"] or case["left"]] == []
    said = [case["said"] for case in cases if case["said"] is not None]
    assert len(said) > 0.7 * len(cases)
    for line in said:
        assert re.fullmatch(r"cannot write '/\S+': no space left on device; free some space or choose another folder", line)


@pytest.mark.parametrize("step", [23, pytest.param(7, marks=pytest.mark.slow)])
def test_a_folder_that_becomes_read_only_at_any_moment_loses_nothing(data, step):
    said = []
    with ordinary_user() as folder:
        total = calls_of(data, folder / "whole")
        for count in range(10, total + 1, step):
            out = folder / str(count)

            @contextlib.contextmanager
            def read_only(out: Path = out) -> Iterator[None]:
                inside = [Path(at) for at, _, _ in os.walk(out)]
                for path in inside:
                    path.chmod(0o555)
                yield
                for path in inside:
                    if path.exists():
                        path.chmod(0o755)

            said.append(broken_off(data, out, count, read_only))
            tune(data, out)
            assert differences(folder / "whole", out) == [], count
    broke = [one for one in said if one is not None]
    assert [one for one in broke if not re.fullmatch(r"cannot write '/\S+': permission denied; choose .*", one)] == []
    assert len(broke) > 0.5 * len(said)


def test_data_that_vanishes_after_it_was_read_changes_nothing_and_a_resumed_run_names_it(tmp_path, capsys):
    table, out = write_csv(tmp_path / "weather.csv", good_columns(), rows=120), tmp_path / "out"
    data = ForecastData(read_table(table), "0.6,0.2,0.2", CONTEXT, HORIZON)
    tune(data, tmp_path / "whole")

    class Remove(StopAt):
        def update(self, n, **fields):
            if fields["stage"] == "train":
                table.unlink(missing_ok=True)

    tune(data, out, progress=Remove("train", 1))
    assert not table.exists()
    assert differences(tmp_path / "whole", out) == []
    (out / "metrics.json").unlink()
    before = contents(out)
    line = refused(capsys, "finetune", *MODEL, "--data", table, *LENGTHS, "--out", out, "--resume")
    assert re.search(r"weather\.csv': (it does not exist|no such file)", line), line
    assert contents(out) == before


@pytest.mark.parametrize("closed", ["data", "checkpoint", "state", "a save"])
def test_what_may_not_be_read_is_named_and_nothing_is_changed(data, capsys, closed):
    with ordinary_user() as folder:
        table, out = write_csv(folder / "weather.csv", good_columns()), folder / "out"
        tiny("timer").save(folder / "timer")
        tune(data, folder / "whole")
        with pytest.raises(SystemExit):
            tune(data, out, progress=StopAt("train", 3))
        before = contents(out)
        shut = {
            "data": [table],
            "checkpoint": list((folder / "timer").glob("*.safetensors")),
            "state": [out / "state"],
            "a save": list((out / "state").glob("save-*")),
        }[closed]
        for path in shut:
            path.chmod(0)
        model = ["--family", "timer", "--checkpoint", folder / "timer"]
        line = refused(capsys, "finetune", *model, "--data", table, *LENGTHS, "--out", out, "--resume")
        for path in shut:
            path.chmod(0o755)
        assert str(shut[0]) in line
        assert "permission denied" in line.lower()
        assert contents(out) == before
        tune(data, out)
        assert differences(folder / "whole", out) == []


# --- clocks -------------------------------------------------------------------------------------------------------------


def test_clocks_that_jump_to_and_fro_change_nothing(data, whole, tmp_path, monkeypatch):
    jumps = iter(range(10**9))

    def jumping() -> float:
        return 1.7e9 + (-1) ** next(jumps) * 1e8

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        tune(data, out, progress=StopAt("train", 8))
    for age, path in enumerate(sorted(out.rglob("*"))):
        os.utime(path, (1.7e9 - age * 1e7,) * 2)  # the later by name, the older
    tune(data, out)
    assert differences(whole, out) == []


# --- losses that are not finite -----------------------------------------------------------------------------------------


def spoil_weights(adapter: FakeAdapter) -> None:
    passes = []

    def before(module, inputs):
        passes.append(module.training)
        if module.training and sum(passes) == 7:
            with torch.no_grad():
                adapter.model.head.weight[0, :3] = float("nan")

    adapter.model.body.register_forward_pre_hook(before)


def spoil_a_window(adapter: FakeAdapter) -> None:
    adapter.on_loss = lambda batch: torch.tensor(float("inf")) if 3 in batch.index.tolist() else None


def spoil_a_layer(adapter: FakeAdapter) -> None:
    adapter.model.head.register_forward_hook(lambda module, inputs, output: output * float("inf") if module.training else output)


@pytest.mark.parametrize(
    ("spoil", "step", "best", "cause"),
    [
        (
            spoil_weights,
            7,
            1,
            r"3 of 32 values of the parameter 'head\.weight' are not finite since step 6, "
            r"of windows [\d, …]+ \(25 in the batch\)",
        ),
        (
            spoil_a_window,
            2,
            0,
            r"every parameter is finite, the loss of window 3 \(from row 3, column 'first'\) is not; "
            "the output of every layer is finite, and the loss made of it is not",
        ),
        (
            spoil_a_layer,
            1,
            0,
            r"every parameter is finite, the loss of window \d+ \(from row \d+, column '(first|second)'\) is not; "
            r"the first layer whose output is not finite is 'head', whose parameter 'head\.weight' goes up to 0\.\d+",
        ),
    ],
)
def test_a_loss_that_is_not_finite_is_traced_to_what_did_it(data, tmp_path, spoil, step, best, cause):
    adapter = FakeAdapter.tiny()
    before = {name: buffer.clone() for name, buffer in adapter.model.named_buffers()}
    spoil(adapter)
    with pytest.warns(UserWarning, match=f"the best weights, of epoch {best}, are kept"):
        result = finetune(adapter, data, "ff", out=tmp_path / "run", **OPTIONS)
    epoch = 1 + (step - 1) // 5
    pattern = (
        rf"the training loss is (nan|inf) at step {step}, in epoch {epoch}, of windows [\d, …]+ \(25 in the batch\): "
        rf"{cause}: training stopped"
    )
    assert re.fullmatch(pattern, result.stopped), result.stopped
    assert result.best_epoch == best
    kept = FakeAdapter.load(tmp_path / "run" / "model").model
    assert all(tensor.isfinite().all() for tensor in kept.state_dict().values())
    if best == 0:
        assert all(torch.equal(before[name], buffer) for name, buffer in adapter.model.named_buffers())


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_a_script_sees_by_the_exit_code_that_training_stopped_at_a_loss_that_is_not_finite(tmp_path, capsys, command):
    table = write_csv(tmp_path / "weather.csv", good_columns())
    way = {"finetune": ("--strategy", "ff"), "compare": ("--strategies", "lp,ff")}[command]
    given = [command, *MODEL, "--data", str(table), *LENGTHS, *QUICK, *way, "--quiet"]
    for out, lr, code in (("well", "1e-3", 0), ("ill", "1e30", 3)):
        words = [*given, "--lr", lr, "--out", str(tmp_path / out)]
        assert main(words) == code
        runs = json.loads((tmp_path / out / "metrics.json").read_text())["runs"]
        assert runs[-1]["diverged"] == (code == 3), runs
        assert (tmp_path / out / "report.html").exists()
        said = capsys.readouterr().err
        assert ("the best weights, of epoch 0, are kept" in said) == (code == 3), said
        # Shown again, it is still so.
        assert main([*words, "--resume"]) == code
        capsys.readouterr()


# --- memory -------------------------------------------------------------------------------------------------------------


def test_too_little_memory_says_what_a_limit_would_choose():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "tests" / "out_of_memory.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"ExhaustedError: out of memory \(.*allocate.*\): --max-memory \d+M, the peak that it came to, would choose "
        r"(fp32|bf16-sr), optimizer [\w-]+.*, micro-batches of \d+, evaluation of \d+ windows at a time, "
        r"\d+\.\d+ [MG]iB predicted; start again with it\n",
        done.stdout,
    ), done.stdout


def test_an_error_that_is_none_of_memory_stays_what_it_is(data):
    def fail(batch):
        raise RuntimeError("the model's own")

    adapter = FakeAdapter.tiny()
    adapter.on_loss = fail
    with pytest.raises(RuntimeError, match=r"^the model's own$"):
        finetune(adapter, data, "ff", **OPTIONS)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize(
    ("peak", "advice"),
    [
        (
            8 << 30,
            r"--max-memory 8192M, the peak that it came to, would choose fp32, .* predicted; start again with it",
        ),
        (
            1 << 20,
            r"try a smaller --micro-batch .* \(max_memory=1.00 MiB is too little: the least that .*\)",
        ),
    ],
)
def test_every_kind_of_exhaustion_is_told_in_one_line(data, tmp_path, monkeypatch, kind, peak, advice):
    adapter, steps = FakeAdapter.tiny(), []

    def fail(batch):
        steps.append(1)
        if len(steps) == 7:
            raise kind("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 1 GiB\nand more")

    adapter.on_loss = fail
    monkeypatch.setattr(exhausted, "peak_memory", lambda device: peak)
    with pytest.raises(ExhaustedError) as caught:
        finetune(adapter, data, "ff", out=tmp_path / "run", **OPTIONS)
    end = " and --overwrite" if peak > 1 << 30 else ""
    assert re.fullmatch(rf"out of memory \(Tried to allocate 3\.00 GiB\): {advice}{end}", str(caught.value)), str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert len(list((tmp_path / "run" / "state").glob("save-*"))) == 2


def no_memory(*_: object, **__: object) -> None:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "8589934592 bytes. Error code 12 (Cannot allocate memory)"
    )


@pytest.mark.parametrize(
    ("command", "where", "advice"),
    [
        (
            "evaluate",
            (TimerAdapter, "_forecast"),
            r"try a smaller batch_size \(--batch-size\), it was 256; `sff-fast plan --memory` .*",
        ),
        ("forecast", (TimerAdapter, "_forecast"), r"try fewer num_samples \(--num-samples\), .*"),
        ("landscape", (TimerAdapter, "_loss"), r"try a smaller batch_size \(--batch-size\), or no Hessian \(--no-hessian\), .*"),
        ("evaluate", (TimerAdapter, "load"), r"a model is as large in memory as on disk, .* `sff-fast smooth --plan`"),
        ("finetune", (TimerAdapter, "load"), r"a model is as large in memory as on disk, .* `sff-fast smooth --plan`"),
        ("finetune", ("sff_fast.data.read_table",), r"free some, or take .*; `sff-fast plan --memory` predicts what a run needs"),
        ("smooth", ("sff_fast.checkpoints.smooth_checkpoint",), r"free some, or take .*"),
    ],
)
def test_too_little_memory_is_one_line_in_every_command(tmp_path, capsys, monkeypatch, command, where, advice):
    table = str(write_csv(tmp_path / "weather.csv", good_columns()))
    tiny("timer").save(tmp_path / "timer")
    model = ["--family", "timer", "--checkpoint", str(tmp_path / "timer")]
    words = {
        "evaluate": [*model, "--data", table, *LENGTHS, "--quiet"],
        "forecast": [*model, "--data", table, *LENGTHS],
        "landscape": [*model, "--data", table, *LENGTHS, "--grid", "5", "--no-hessian", "--quiet"],
        "finetune": [*model, "--data", table, *LENGTHS, "--out", str(tmp_path / "out")],
        "smooth": [str(tmp_path / "timer"), str(tmp_path / "out"), "--family", "timer"],
    }[command]
    before = contents(tmp_path)
    monkeypatch.setattr(*where, no_memory)
    line = refused(capsys, command, *words)
    asked = r"can't allocate memory: you tried to allocate 8589934592 bytes"
    assert re.fullmatch(rf"sff-fast: error: out of memory \({asked}\): {advice}", line), line
    assert contents(tmp_path) == before


def test_a_bug_that_is_none_of_memory_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the model's own")

    table = str(write_csv(tmp_path / "weather.csv", good_columns()))
    monkeypatch.setattr(TimerAdapter, "_forecast", fail)
    with pytest.raises(RuntimeError, match=r"^the model's own$"):
        main(["evaluate", *MODEL, "--data", table, *LENGTHS, "--quiet"])


# --- two at once --------------------------------------------------------------------------------------------------------

_HOLDER = """
import sys
from sff_fast.files import claimed_directory
with claimed_directory(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_by_another(out: Path) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(out)], env=environment, **pipes) as holder:
        assert holder.stdout.readline() == "ready\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_folder_that_another_process_writes_to_is_refused_until_it_dies(data, whole, tmp_path, capsys):
    table, out = write_csv(tmp_path / "weather.csv", good_columns()), tmp_path / "run"
    with held_by_another(out) as holder:
        message = rf"the output folder '{out}' is in use by process {holder.pid}: wait until it ends, or choose another folder"
        for options in ([], ["--resume"], ["--overwrite"]):
            line = refused(capsys, "finetune", *MODEL, "--data", table, *LENGTHS, "--out", out, *options)
            assert line == f"sff-fast: error: {message}"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match=re.escape(message)):
                finetune(FakeAdapter.tiny(), data, "ff", out=out, **OPTIONS | options)
        assert list(out.iterdir()) == []
        holder.kill()  # SIGKILL, after which nothing can be tidied up
        holder.wait()
        tune(data, out)
    assert differences(whole, out) == []


@pytest.mark.parametrize("do", [compare, sweep, landscape])
def test_nothing_that_writes_a_folder_does_so_beside_another(data, tmp_path, do):
    with files.claimed_directory(tmp_path), pytest.raises(OutputError, match=f"is in use by process {os.getpid()}: wait"):
        do(FakeAdapter.tiny, data, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_holds_its_folder_from_beginning_to_end(data, tmp_path):
    out, seen = tmp_path / "a" / "run", []

    class Try(StopAt):
        def update(self, n, **fields):
            with pytest.raises(OutputError, match="is in use by process"):
                locks.release(locks.take(out))
            seen.append(fields["stage"])

    tune(data, out, progress=Try("train", 1))
    assert {"train", "val", "test"} <= set(seen)
    locks.release(locks.take(out))


def test_a_folder_that_was_made_for_nothing_is_removed(data, tmp_path):
    with pytest.raises(ZeroDivisionError), files.claimed_directory(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with files.claimed_directory(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").touch()
    assert (tmp_path / "a" / "b" / "x").exists()
    with files.claimed_directory(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "b" / "x").exists()


def test_a_folder_that_is_removed_while_it_is_taken_is_made_again(tmp_path, monkeypatch):
    take, times = locks.take, []

    def removed(folder):
        times.append(1)
        if len(times) == 1:
            folder.rmdir()
        return take(folder)

    monkeypatch.setattr(locks, "take", removed)
    with files.claimed_directory(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
        with pytest.raises(OutputError, match="in use"):
            take(tmp_path / "run")
    assert len(times) == 2


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with (
        pytest.warns(UserWarning, match="has no locks: see to it that no other run writes there"),
        files.claimed_directory(tmp_path),
    ):
        pass
