"""The fine-tuning loop in several processes: the same windows, losses and weights as in one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import job_ranks
import numpy as np
import pytest
from job_ranks import SETTINGS, StackAdapter
from training_fakes import make_data

import sff_fast
from sff_fast.data import epoch_order
from sff_fast.distributed import ShareSampler, WindowSampler, finetune
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.training import evaluate

# Sums of float32 gradients in another order: 2**-24 a sum, carried through eight steps of Adam, which divides small by small.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_group(size: int, folder: Path, jobs: dict[str, dict]) -> dict[str, list[dict]]:
    """What every rank of a group answered to every job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["job_ranks"])
    port = free_port()
    ranks = [context.Process(target=job_ranks.serve, args=(k, size, port, str(folder), jobs)) for k in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
    answers = {label: [json.loads((folder / f"{label}-{k}.json").read_text()) for k in range(size)] for label in jobs}
    for label, given in answers.items():
        for k, answer in enumerate(given):
            assert "error" not in answer, f"{label}, rank {k}: {answer['error']}"
    return answers


def agree(answer: dict, expected: dict) -> None:
    """Equal decisions, losses and weights up to the order of sums."""
    assert answer["best_epoch"] == expected["best_epoch"]
    assert [r["step"] for r in answer["history"]] == [r["step"] for r in expected["history"]]
    for key in ("train_loss", "val_mse"):
        np.testing.assert_allclose([r[key] for r in answer["history"]], [r[key] for r in expected["history"]], **CLOSE)
    assert answer["test"]["windows"] == expected["test"]["windows"]
    np.testing.assert_allclose(answer["test"]["mse"], expected["test"]["mse"], **CLOSE)
    for name, values in expected["weights"].items():
        np.testing.assert_allclose(answer["weights"][name], values, err_msg=name, **CLOSE)


@pytest.fixture(scope="module")
def alone() -> dict:
    """The job in this process."""
    return job_ranks.job(StackAdapter.tiny())


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, dict[str, list[dict]]]:
    """Jobs of two ranks."""
    folder = tmp_path_factory.mktemp("pair")
    stopped = {"parallel": "fsdp", "out": str(folder / "job"), "epochs": 1, "schedule": "constant"}
    jobs = {
        "ddp": {"out": str(folder / "ddp")},
        "ddp-micro": {"micro_batch": 2},
        "fsdp": {"parallel": "fsdp", "micro_batch": 3},
        "fused": {"parallel": "fsdp", "optimizer": "fused-adam", "optimizer_state": "float32", "grad_clip": 1e3},
        "scratch": {"parallel": "fsdp", "strategy": "tfs", "max_steps": 1, "lr": 1e-12},
        "stopped": stopped,
    }
    return folder, run_group(2, folder, jobs)


# ---------------------------------------------------------------------- which windows
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("windows", "batch"), [(23, 6), (24, 6), (7, 5), (3, 8)])
def test_every_window_is_trained_on_once_and_in_the_order_of_one_process(size, windows, batch):
    samplers = [WindowSampler(windows, batch, seed=4, rank=rank, size=size) for rank in range(size)]
    for sampler in samplers:
        sampler.set_epoch(2)
    order = epoch_order(windows, 4, 2).tolist()
    parts = [list(sampler) for sampler in samplers]
    assert all(len(p) == len(s) == -(-windows // batch) for p, s in zip(parts, samplers))
    seen = []
    for i in range(len(parts[0])):
        weights = [s.weight(i) for s in samplers]
        assert sum(weights) == pytest.approx(size)
        assert all(len(p[i]) > 0 for p in parts)  # every process makes as many steps
        seen += [window for p, w in zip(parts, weights) if w for window in p[i]]
    assert seen == order
    for sampler in samplers:
        sampler.set_epoch(2, start=batch)
    assert [w for p in zip(*samplers) for part in p for w in part if w not in order[:batch]][: windows - batch or None]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_shares_hold_each_window_once(size):
    shares = [list(ShareSampler(19, rank, size)) for rank in range(size)]
    assert [window for share in shares for window in share] == list(range(19))
    assert {len(list(ShareSampler(19, k, size))) - len(ShareSampler(19, k, size)) for k in range(size)} == {0}


def test_wrong_ranks_and_sizes_are_refused():
    with pytest.raises(ArgumentError, match="rank must lie from 0 to 1, got 2"):
        WindowSampler(5, 2, rank=2, size=2)
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        WindowSampler(5, 0)
    with pytest.raises(ArgumentError, match="rank must lie from 0 to 0, got 1"):
        ShareSampler(5, 1)


# ---------------------------------------------------------------------- one process
def test_a_job_of_one_process_is_the_ordinary_loop(alone):
    adapter = StackAdapter.tiny()
    ordinary = sff_fast.finetune(adapter, make_data(), device="cpu", **SETTINGS)
    assert ordinary.best_epoch == alone["best_epoch"]
    np.testing.assert_allclose([r["val_mse"] for r in ordinary.history[1:]], [r["val_mse"] for r in alone["history"]], rtol=1e-6)
    np.testing.assert_allclose(ordinary.test_mse, alone["test"]["mse"], rtol=1e-6)
    assert ordinary.zero_shot["metrics"] == alone["zero_shot"]["metrics"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": "zero3"}, "parallel must be one of ddp, fsdp, got 'zero3'"),
        ({"strategy": "lp"}, "strategy must be one of ff, sff, tfs, got 'lp'"),
        ({"micro_batch": 0}, "micro_batch must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        finetune(StackAdapter.tiny(), make_data(), device="cpu", **settings)


# ---------------------------------------------------------------------- two processes
@pytest.mark.parametrize("label", ["ddp", "ddp-micro", "fsdp", "fused"])
def test_two_ranks_give_what_one_gives(pair, alone, label):
    for answer in pair[1][label]:
        agree(answer, alone)


def test_all_ranks_end_with_the_same_answer(pair):
    for first, second in pair[1].values():
        assert first == second


def test_evaluation_over_ranks_counts_every_window_once(pair):
    expected = evaluate(StackAdapter.tiny(), make_data(), "test", batch_size=5)
    for label in ("ddp", "fsdp"):
        found = pair[1][label][0]["zero_shot"]["metrics"]["test"]
        assert found["windows"] == expected["windows"]
        for key in ("mse", "mae"):
            # float64 sums of two processes; the forecasts of gathered parameters have the same bits
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-12)


def test_training_from_scratch_starts_from_the_sample_of_the_plan(pair):
    adapter = StackAdapter.tiny()
    sff_fast.fill_(adapter.model, adapter.plan(), seed=3)
    for name, p in adapter.model.named_parameters():
        np.testing.assert_allclose(pair[1]["scratch"][0]["weights"][name], p.detach().double().flatten().tolist(), atol=1e-7)


def test_one_process_writes_metrics_log_and_a_model_in_the_familys_layout(pair):
    folder = pair[0] / "ddp"
    metrics = json.loads((folder / "metrics.json").read_text())
    answer = pair[1]["ddp"][0]
    assert metrics["runs"][0]["test_mse"] == answer["test"]["mse"]
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert (events.count("start"), events.count("epoch"), events.count("end")) == (1, 2, 1)
    saved = StackAdapter.load(folder / "model")
    for name, p in saved.model.named_parameters():
        assert p.detach().double().flatten().tolist() == answer["weights"][name]
    assert len(list((folder / "state").iterdir())) == 2


@pytest.mark.parametrize(("size", "parallel"), [(1, "ddp"), (3, "fsdp")])
def test_another_number_of_ranks_goes_on_where_two_have_stopped(pair, tmp_path, size, parallel):
    # one epoch of two is done: the settings that decide a result must agree, so the save's own are extended
    shutil.copytree(pair[0] / "job", tmp_path / "job")
    for content in (tmp_path / "job" / "state").glob("save-*/job.json"):
        raw = json.loads(content.read_text())
        raw["content"]["identity"]["settings"]["epochs"] = 2
        content.write_text(json.dumps(raw))
    more = {"parallel": parallel, "out": str(tmp_path / "job"), "schedule": "constant", "resume": True}
    expected = job_ranks.job(StackAdapter.tiny(), schedule="constant")
    if size == 1:
        agree(job_ranks.job(StackAdapter.tiny(), **more), expected)
    else:
        for answer in run_group(size, tmp_path, {"resumed": more})["resumed"]:
            agree(answer, expected)


def test_a_job_with_other_settings_is_not_continued(pair):
    with pytest.raises(CheckpointError, match=r"is another one .*seed"):
        finetune(StackAdapter.tiny(), make_data(), device="cpu", **{**SETTINGS, "seed": 4}, out=pair[0] / "ddp", resume=True)


def test_a_damaged_save_is_refused_and_the_one_before_is_used(pair, tmp_path, alone):
    shutil.copytree(pair[0] / "ddp", tmp_path / "job")
    (tmp_path / "job" / "metrics.json").unlink()
    newest = max((tmp_path / "job" / "state").iterdir())
    next(newest.glob("*.distcp")).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"is damaged.*the save before"):
        answer = job_ranks.job(StackAdapter.tiny(), out=str(tmp_path / "job"), resume=True)
    agree(answer, alone)


# ---------------------------------------------------------------------- torchrun
KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from job_ranks import StackAdapter, job
adapter, calls = StackAdapter.tiny(), []
def on_loss(batch):
    calls.append(1)
    if {kill} and os.environ["RANK"] == "1" and len(calls) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
adapter.on_loss = on_loss
answer = job(adapter, parallel="fsdp", out={out!r}, checkpoint_every=2, resume=True)
if os.environ["RANK"] == "0":
    import json
    open({answer!r}, "w").write(json.dumps(answer))
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_with_a_message_and_the_last_save_is_good(tmp_path, alone):
    tests = Path(__file__).parent

    def launch(size: int, kill: bool) -> subprocess.CompletedProcess:
        script = tmp_path / "job.py"
        values = {"tests": str(tests), "out": str(tmp_path / "job"), "answer": str(tmp_path / "answer.json"), "kill": kill}
        script.write_text(KILLED.format(**values))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), str(script)]
        environment = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)

    done = launch(2, kill=True)
    assert done.returncode != 0
    assert "BackendError: rank 0 of 2 lost another process of the job" in done.stderr
    assert "exitcode  : -9" in done.stderr  # torchrun's own report of who died
    assert not (tmp_path / "job" / "metrics.json").exists()
    done = launch(3, kill=False)
    assert done.returncode == 0, done.stderr
    agree(json.loads((tmp_path / "answer.json").read_text()), alone)


# ---------------------------------------------------------------------- other people's launchers
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "torchrun_finetune.py", "--parallel", "fsdp"],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
        + ["--dynamo_backend", "no", "accelerate_finetune.py"],
        ["lightning_finetune.py", "--devices", "2"],
    ],
    ids=["torchrun", "accelerate", "lightning"],
)
def test_the_examples_run_in_two_processes_and_learn(command):
    examples = Path(__file__).parent.parent / "examples"
    environment = {**os.environ, "PYTHONPATH": str(examples.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=examples, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    if "before" in answer:
        assert answer["after"] < answer["before"]
        assert answer["windows"] == EXAMPLE_WINDOWS
    else:
        assert answer["best_epoch"] >= 1


EXAMPLE_WINDOWS = 2 * (140 - 24 + 1)
"""Two channels; of 700 rows the 140 of the validation part, less the steps after a window's first forecast."""
