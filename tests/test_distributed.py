"""The fine-tuning loop in several processes: the same windows, losses and weights as in one."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
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
from sff_fast import finetune
from sff_fast.data import epoch_order
from sff_fast.distributed import ShareSampler, WindowSampler
from sff_fast.errors import ArgumentError, CheckpointError

# Sums of float32 gradients in another order: 2**-24 a sum, carried through eighteen steps of Adam; 6e-8 was seen.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


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


def agree(answer: dict, expected: dict, **close: float) -> None:
    """Equal decisions, losses and weights up to the order of sums."""
    close = close or CLOSE
    assert answer["run"]["best_epoch"] == expected["run"]["best_epoch"]
    assert [r["step"] for r in answer["history"]] == [r["step"] for r in expected["history"]]
    for key in ("train_loss", "val_mse"):
        found, wanted = ([r[key] for r in one["history"] if r[key] is not None] for one in (answer, expected))
        np.testing.assert_allclose(found, wanted, **close)
    assert answer["run"]["metrics"]["test"]["windows"] == expected["run"]["metrics"]["test"]["windows"]
    np.testing.assert_allclose(answer["run"]["test_mse"], expected["run"]["test_mse"], **close)
    for name, values in expected["weights"].items():
        np.testing.assert_allclose(answer["weights"][name], values, err_msg=name, **close)


@pytest.fixture(scope="module")
def alone():
    """What this process gives by itself, by settings."""
    known: dict[str, dict] = {}

    def of(**settings) -> dict:
        label = json.dumps(settings, sort_keys=True)
        if label not in known:
            known[label] = job_ranks.job(StackAdapter.tiny(), **settings)
        return known[label]

    return of


OURS = {"optimizer": "fused-adam"}
JOBS = {
    "ddp": {},
    "ddp-micro": {"micro_batch": 2},
    "ddp-released": {**OURS, "release_gradients": True},
    "ddp-released-clipped": {**OURS, "release_gradients": True, "grad_clip": 0.05},
    "ddp-head-then-all": {"strategy": "lp-ff"},
    "ddp-clipped": {"grad_clip": 0.05},
    "ddp-recomputed": {"activation_checkpointing": True},
    "fsdp": {"parallel": "fsdp", "micro_batch": 3},
    "fsdp-fused": {"parallel": "fsdp", **OURS, "optimizer_state": "float32", "grad_clip": 0.05},
    "fsdp-released": {"parallel": "fsdp", **OURS, "release_gradients": True},
    "fsdp-released-clipped": {"parallel": "fsdp", **OURS, "release_gradients": True, "grad_clip": 0.05},
    "fsdp-head-then-all": {"parallel": "fsdp", "strategy": "lp-ff"},
    "fsdp-head": {"parallel": "fsdp", "strategy": "lp"},
    "fsdp-scratch": {"parallel": "fsdp", "strategy": "tfs"},
    "fsdp-torch-draws": {"parallel": "fsdp", "rng": "torch"},
    "fsdp-recomputed": {"parallel": "fsdp", "activation_checkpointing": True},
    "ddp-averaged": {"strategy": "ema", "ema_decay": 0.7},
    "fsdp-averaged": {"parallel": "fsdp", "strategy": "ema", "ema_decay": 0.7},
    "fsdp-shrunk": {"parallel": "fsdp", "strategy": "shrink"},
    "fsdp-perturbed": {"parallel": "fsdp", "strategy": "perturb"},
    "fsdp-whole-batch-released": {"parallel": "fsdp", **OURS, "release_gradients": True, "micro_batch": 2},
}
"""Jobs of two ranks that give what one process gives with the same settings."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, dict[str, list[dict]]]:
    """Jobs of two ranks."""
    folder = tmp_path_factory.mktemp("pair")
    more = {
        "ddp-out": {"out": str(folder / "ddp")},
        "fsdp-out": {"parallel": "fsdp", "out": str(folder / "fsdp")},
        "ddp-spare": {"adapter": "spare"},
        "fsdp-spare": {"adapter": "spare", "parallel": "fsdp"},
        "zero-shot": {"strategy": "zero-shot", "parallel": "fsdp", "out": str(folder / "zero-shot")},
        "again": {"out": str(folder / "ddp"), "resume": True},
        "stopped-averaged": {
            **{"parallel": "fsdp", "out": str(folder / "stopped-averaged"), "stop_at": (1, 8, signal.SIGTERM)},
            **{"strategy": "ema", "ema_decay": 0.7},
        },
        "stopped": {"parallel": "fsdp", "out": str(folder / "stopped"), "stop_at": (1, 8, signal.SIGTERM)},
        **{
            label: {
                **{"parallel": "fsdp", "out": str(folder / label), "stop_at": (1, 8, signal.SIGTERM)},
                **{**OURS, "optimizer_state": "int8"},
            }
            for label in ("stopped-int8", "stopped-int8-too")
        },
        "int8": {"parallel": "fsdp", **OURS, "optimizer_state": "int8"},
        "int8-resumed": {
            **{"parallel": "fsdp", "out": str(folder / "stopped-int8"), "resume": True},
            **{**OURS, "optimizer_state": "int8"},
        },
    }
    return folder, run_group(2, folder, {**{label: dict(settings) for label, settings in JOBS.items()}, **more})


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
    if windows > batch:  # resumed after the first batch
        for sampler in samplers:
            sampler.set_epoch(2, start=batch)
        rest = zip(*(list(sampler) for sampler in samplers))
        weighted = [(part, s.weight(i)) for i, parts in enumerate(rest) for part, s in zip(parts, samplers)]
        assert [window for part, w in weighted if w for window in part] == order[batch:]


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
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": "zero3"}, "parallel must be one of ddp, fsdp, got 'zero3'"),
        ({"parallel": "fsdp"}, "parallel='fsdp' needs several processes, got one: start with torchrun"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        finetune(StackAdapter.tiny(), make_data(), device="cpu", **settings)


def test_what_is_for_one_process_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="a comparison runs in one process, got 2: start it without torchrun"):
        sff_fast.compare(StackAdapter.tiny, make_data())


# ---------------------------------------------------------------------- two processes
@pytest.mark.parametrize("label", JOBS)
def test_two_ranks_give_what_one_gives(pair, alone, label):
    expected = alone(**{name: value for name, value in JOBS[label].items() if name not in ("parallel", "micro_batch")})
    for answer in pair[1][label]:
        agree(answer, expected)


@pytest.mark.parametrize("label", ["ddp-spare", "fsdp-spare"])
def test_parameters_that_the_loss_does_not_use_do_not_matter(pair, alone, label):
    for answer in pair[1][label]:
        weights = {name: values for name, values in answer["weights"].items() if not name.startswith("spare.")}
        assert len(weights) == len(answer["weights"]) - 2
        agree({**answer, "weights": weights}, alone())


def test_all_ranks_end_with_the_same_answer(pair):
    for label, (first, second) in pair[1].items():
        assert first == second, label


def test_evaluation_over_ranks_has_the_bits_of_one_process(pair, alone):
    expected = alone()["zero_shot"]["metrics"]
    for label in ("ddp", "fsdp", "zero-shot"):
        assert pair[1][label][0]["zero_shot"]["metrics"] == expected


@pytest.mark.parametrize("label", ["ddp", "fsdp"])
def test_one_process_writes_metrics_log_and_a_model_in_the_familys_layout(pair, label):
    folder, answer = pair[0] / label, pair[1][f"{label}-out"][0]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["runs"] == [answer["run"]]
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert (events.count("start"), events.count("epoch"), events.count("end")) == (1, 3, 1)
    saved = StackAdapter.load(folder / "model")
    for name, p in saved.model.named_parameters():
        assert p.detach().double().flatten().tolist() == answer["weights"][name]
    assert len(list((folder / "state").iterdir())) == 1


def test_a_finished_job_is_returned_by_all_ranks(pair):
    for answer in pair[1]["again"]:
        assert answer["run"] == pair[1]["ddp-out"][0]["run"]


# ---------------------------------------------------------------------- going on
def test_a_signal_to_one_rank_stops_all_after_the_same_step(pair):
    assert [answer["stopped"] for answer in pair[1]["stopped"]] == [143, 143]
    newest = max((pair[0] / "stopped" / "state").glob("save-*"))
    assert json.loads((newest / "state.json").read_text())["content"]["position"]["step"] == 8
    assert len(list(newest.glob("*.distcp"))) == 2  # each has written its part


@pytest.mark.parametrize(("size", "parallel"), [(1, None), (3, "fsdp"), (3, "ddp")])
def test_another_number_of_ranks_goes_on_where_two_have_stopped(pair, alone, tmp_path, size, parallel):
    shutil.copytree(pair[0] / "stopped", tmp_path / "job")
    more = {"parallel": parallel, "out": str(tmp_path / "job"), "resume": True}
    if size == 1:
        agree(job_ranks.job(StackAdapter.tiny(), **more), alone())
    else:
        for answer in run_group(size, tmp_path, {"resumed": more})["resumed"]:
            agree(answer, alone())


def test_an_average_of_weights_goes_on_in_one_process(pair, alone, tmp_path):
    shutil.copytree(pair[0] / "stopped-averaged", tmp_path / "job")
    averaged = {"strategy": "ema", "ema_decay": 0.7}
    agree(job_ranks.job(StackAdapter.tiny(), out=str(tmp_path / "job"), resume=True, **averaged), alone(**averaged))


@pytest.mark.parametrize("optimizer", ["adam", "fused-adam"])
def test_two_ranks_go_on_where_one_process_has_stopped(alone, tmp_path, monkeypatch, optimizer):
    monkeypatch.setenv("RANK", "0")  # for the signal; the job is none
    monkeypatch.setattr("sff_fast.distributed.parallel.launched", lambda: False)
    with pytest.raises(SystemExit):
        job_ranks.job(StackAdapter.tiny(), out=str(tmp_path / "job"), optimizer=optimizer, stop_at=(0, 8, signal.SIGTERM))
    more = {"parallel": "fsdp", "out": str(tmp_path / "job"), "resume": True, "optimizer": optimizer}
    for answer in run_group(2, tmp_path, {"resumed": more})["resumed"]:
        agree(answer, alone(optimizer=optimizer))


def test_states_of_eight_bits_go_on_with_the_same_bits_on_as_many_ranks(pair):
    for resumed, whole in zip(pair[1]["int8-resumed"], pair[1]["int8"]):
        assert resumed["weights"] == whole["weights"]
        assert resumed["run"]["test_mse"] == whole["run"]["test_mse"]


def test_states_of_eight_bits_are_cut_anew_for_another_number_of_ranks(pair):
    more = {"out": str(pair[0] / "stopped-int8-too"), "resume": True, **OURS, "optimizer_state": "int8"}
    answer = job_ranks.job(StackAdapter.tiny(), **more)
    # Blocks begin elsewhere: a moment is off by up to 2**-5 of itself, a step of 1e-2 by as much of its size.
    agree(answer, pair[1]["int8"][0], rtol=2e-2, atol=2e-3)


def test_a_job_with_other_settings_is_not_continued(pair):
    with pytest.raises(CheckpointError, match=r"is another one .*seed"):
        finetune(StackAdapter.tiny(), make_data(), device="cpu", **{**SETTINGS, "seed": 4}, out=pair[0] / "ddp", resume=True)


def test_a_damaged_save_is_refused_and_the_one_before_is_used(pair, tmp_path, alone):
    shutil.copytree(pair[0] / "stopped", tmp_path / "job")
    newest = max((tmp_path / "job" / "state").glob("save-*"))
    next(newest.glob("*.distcp")).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"is damaged: .*distcp has 0 bytes.*the save before"):
        answer = job_ranks.job(StackAdapter.tiny(), out=str(tmp_path / "job"), resume=True)
    agree(answer, alone())


# ---------------------------------------------------------------------- torchrun
KILLED = """
import json, os, sys
sys.path.insert(0, {tests!r})
from job_ranks import StackAdapter, job

def main():
    answer = job(StackAdapter.tiny(), parallel="fsdp", out={out!r}, checkpoint_every=2, resume=True, stop_at={stop_at})
    if os.environ["RANK"] == "0":
        with open({answer!r}, "w") as file:
            file.write(json.dumps(answer))

main()  # a sharded model that is let go of
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_with_a_message_and_the_last_save_is_good(tmp_path, alone):
    tests = Path(__file__).parent

    def launch(size: int, kill: bool) -> subprocess.CompletedProcess:
        script = tmp_path / "job.py"
        values = {"tests": str(tests), "out": str(tmp_path / "job"), "answer": str(tmp_path / "answer.json")}
        script.write_text(KILLED.format(**values, stop_at=(1, 12, int(signal.SIGKILL)) if kill else None))
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
    agree(json.loads((tmp_path / "answer.json").read_text()), alone())


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
    # One process prints it, in one piece; what a launcher says may stand before it on the line.
    (found,) = re.findall(r'\{"[^{}]*\}', done.stdout)
    answer = json.loads(found)
    if "before" in answer:
        assert answer["after"] < answer["before"]
        assert answer["windows"] == EXAMPLE_WINDOWS
    else:
        assert answer["best_epoch"] >= 1


EXAMPLE_WINDOWS = 2 * (140 - 24 + 1)
"""Two channels; of 700 rows the 140 of the validation part, less the steps after a window's first forecast."""
