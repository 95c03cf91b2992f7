"""Tiny runs of every family that are killed at random moments and resumed: a program that tests start.

The process imports and builds everything once and then forks for every run, so that a run costs no imports. A moment is
no time but a count: of the calls of Python and C functions, or of those that touch files alone, after which the run sends
itself the signal. So it hits anywhere between two calls, in the middle of a save as in that of a step, and whatever it hits,
the verdict is that of equality: no test depends on how fast a machine is.

    python tests/killing.py '{"variants": ["timer"], "kills": 7, "folder": "runs/kills"}'

prints one JSON object a variant: how many runs were killed by which signal, and what differed from the run that was not.
"""

from __future__ import annotations

import collections
import gc
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOLATILE = {"seconds", "throughput", "peak_bytes"}
PARTS = ("position", "optimizer", "method", "rng", "scheduler", "zero_shot", "prepared", "identity", "environment", "log_bytes")

SHARED = {"epochs": 4, "patience": 1, "batch_size": 2, "checkpoint_every": 3, "seed": 5, "deterministic": True, "lr": 3e-3}
"""Early stopping, and saves amid epochs: what a resumed run has to go on with."""

WAYS: dict[str, dict[str, Any]] = {
    "chronos-2": {"strategy": "lora"},
    "chronos-bolt": {"strategy": "ema", "ema_decay": 0.8},
    "chronos-t5": {"strategy": "ff", "schedule": "cosine"},
    "moirai": {"strategy": "sff", "micro_batch": 1},
    "moirai-2": {"strategy": "l2-sp", "optimizer": "adamw", "weight_decay": 0.1},
    "moirai-moe": {"strategy": "tfs"},
    "moment": {"strategy": "lp-ff", "schedule": "cosine", "grad_clip": 0.5},
    "sundial": {"strategy": "sff", "schedule": "constant"},
    "timer": {"strategy": "sff", "precision": "bf16-sr", "optimizer_state": "int8", "release_gradients": True},
    "timer-84m": {"strategy": "mixout"},
    "timesfm-2.0": {"strategy": "l2-init"},
    "timesfm-2.5": {"strategy": "sam"},
    "timesfm-2.5-google": {"strategy": "noise", "precision": "bf16"},
    "timesfm-3-google": {"strategy": "shrink", "activation_checkpointing": True},
    "ttm": {"strategy": "sff", "optimizer": "fused-adamw", "optimizer_state": "bfloat16"},
    "units": {"strategy": "perturb"},
}
"""How each variant is tuned: between them all strategies, schedules, optimizers and ways of saving memory."""

WRITING = {"open", "write", "fsync", "ftruncate", "mkdir", "rename", "replace", "unlink", "rmdir", "dup"}
"""The functions of the operating system between which a run's files change."""

SIGNALS = (*(signal.SIGKILL,) * 5, signal.SIGTERM, signal.SIGINT)
"""What a run is hit by is drawn from these."""


def data_for(variant: str) -> Any:
    """Two noisy waves in few windows."""
    import numpy as np
    from family_cases import case_of, variants

    from sff_fast.data import ForecastData, Table

    case = case_of(variant)
    rows = np.arange(4 * (case.context + case.horizon) + 200)
    noise = 0.3 * np.random.default_rng(0).normal(size=(len(rows), 2))
    table = Table(np.stack([np.sin(rows / 7), np.cos(rows / 11)], axis=1) + noise, ["a", "b"])
    channel_independent = variants()[variant].channel_independent
    return ForecastData(table, "0.6,0.2,0.2", case.context, case.horizon, stride=60, channel_independent=channel_independent)


# --- forks ------------------------------------------------------------------------------------------------------------


def fork(work: Callable[[], Any], said: Path) -> int:
    """Do something in a process of its own; returns how it ended as ``subprocess`` does. What it says goes into a file."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, 1), os.dup2(fd, 2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            sys.setprofile(None)
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Moment:
    """Does something when so many calls have been made.

    Args:
        clock: ``"calls"`` counts all calls of Python and C functions, ``"files"`` those alone between which files change.
        left: Calls until then.
        act: What is done; None to count only.
        again: Calls after it until it is done a second time, or None.
    """

    def __init__(self, clock: str, left: float, act: Callable[[], Any] | None, again: int | None = None) -> None:
        self.clock, self.left, self.act, self.again = clock, left, act, again
        self.seen = {"calls": 0, "files": 0}

    def __enter__(self) -> Moment:
        sys.setprofile(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _call(self, frame: Any, event: str, arg: Any) -> None:
        if event not in ("call", "c_call"):
            return
        self.seen["calls"] += 1
        if event == "c_call" and arg.__name__ in WRITING:
            self.seen["files"] += arg.__module__ == "posix" or isinstance(arg.__self__, io.FileIO)
        if self.seen[self.clock] < self.left:
            return
        self.left = float("inf") if self.again is None else self.left + self.again
        self.again = None
        self.act()


# --- what a run has left -----------------------------------------------------------------------------------------------


def steady(value: Any) -> Any:
    """A nested value without the fields that differ from run to run."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


def lines_of(log: Path) -> list[Any]:
    """A log without the volatile fields."""
    return [steady(json.loads(line)) for line in log.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two finished runs: weights, best weights, optimizer, generators, position, model, log, metrics."""
    found = []
    saves = [max((run / "state").glob("save-*")) for run in (first, second)]
    for part, folders in {"state": saves, "model": [run / "model" for run in (first, second)]}.items():
        one, two = ({name: data for name, data in contents(f).items() if name != "state.json"} for f in folders)
        found += [f"{part}/{name}" for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    for name in ("windows/test.safetensors", "windows/zero-shot.safetensors"):
        if (first / name).read_bytes() != (second / name).read_bytes():
            found.append(name)
    one, two = (json.loads((save / "state.json").read_text())["content"] for save in saves)
    # The log's length tells the digits of times.
    found += [part for part in PARTS if part != "log_bytes" and steady(one[part]) != steady(two[part])]
    if lines_of(first / "log.jsonl") != lines_of(second / "log.jsonl"):
        found.append("log.jsonl")
    one, two = (steady(json.loads((run / "metrics.json").read_text())) for run in (first, second))
    if one != two:
        found.append("metrics.json")
    if left := [path.name for path in second.rglob("*") if ".sff-" in path.name]:
        found.append(f"left behind: {left}")
    return found


# --- chains of kills ----------------------------------------------------------------------------------------------------


class Family:
    """One variant in its folder.

    Args:
        variant: Its name.
        folder: Where its runs lie.
        forget: What a resumed run leaves as it is instead of restoring it, to see that this is noticed; None for nothing.
    """

    def __init__(self, variant: str, folder: Path, forget: str | None = None) -> None:
        import sff_fast

        self.adapter, self.data = sff_fast.tiny(variant), data_for(variant)
        self.options = SHARED | WAYS[variant]
        self.folder, self.forget = folder, forget
        self.draw = random.Random(f"{variant} 1")
        folder.mkdir(parents=True)

    def tune(self, out: Path) -> None:
        """The run, begun or continued."""
        from sff_fast.training import finetune
        from sff_fast.training.runtime import restore_rng

        if self.forget is not None:
            import importlib

            loop = importlib.import_module("sff_fast.training.loop")

            def forgetful(tensors: Any, plain: Any, device: str) -> None:
                import torch

                restore_rng({**tensors, self.forget: torch.get_rng_state()}, plain, device)

            loop.restore_rng = forgetful
        finetune(self.adapter, self.data, out=out, resume=True, device="cpu", **self.options)

    def whole(self, name: str) -> tuple[Path, dict[str, int]]:
        """A run that nobody stops, and how many calls it has made."""
        out, note = self.folder / name, self.folder / f"{name}.calls"

        def work() -> None:
            with Moment("calls", float("inf"), None) as moment:
                self.tune(out)
            note.write_text(json.dumps(moment.seen))

        said = self.folder / f"{name}.txt"
        if code := fork(work, said):
            raise SystemExit(f"an uninterrupted run ended with {code}: {said.read_text()}")
        return out, json.loads(note.read_text())

    def until_killed(self, out: Path, calls: dict[str, int], number: int) -> int:
        """One process of a run that is hit at a random moment; returns how it ended."""
        clock = self.draw.choice(("calls", "files"))
        left = self.draw.randrange(1, calls[clock])
        again = self.draw.randrange(1, 500) if number == signal.SIGINT and self.draw.random() < 0.5 else None

        def work() -> None:
            with Moment(clock, left, lambda: os.kill(os.getpid(), number), again):
                self.tune(out)

        return fork(work, out.with_suffix(".txt"))

    def chains(self, kills: int) -> dict[str, Any]:
        """Runs that are killed again and again until they come to their end, until there were so many kills."""
        first, calls = self.whole("first")
        result: dict[str, Any] = {"uninterrupted": differences(first, self.whole("second")[0]), "calls": calls}
        ended, different, chain = collections.Counter(), {}, 0
        while ended[-signal.SIGKILL] < kills:
            chain += 1
            out = self.folder / f"chain{chain}"
            code = None
            while code != 0:
                if ended[-signal.SIGKILL] < kills:
                    code = self.until_killed(out, calls, self.draw.choice(SIGNALS))
                else:
                    code = fork(lambda out=out: self.tune(out), out.with_suffix(".txt"))
                ended[code] += 1
                if code not in (0, 130, 143, -signal.SIGKILL, -signal.SIGTERM):
                    raise SystemExit(f"a run ended with {code}: {out.with_suffix('.txt').read_text()[-3000:]}")
            if found := differences(first, out):
                different[out.name] = found
            else:
                shutil.rmtree(out)
        return result | {"ended": {str(code): count for code, count in ended.items()}, "chains": chain, "different": different}


def main(request: dict[str, Any]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # threads of autograd for a device would not outlive a fork
    import torch

    import sff_fast.training  # noqa: F401  (imported once, for all forks)

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.fsync = lambda fd: None  # a kill loses nothing that was written; tests/test_power_cuts.py is about the rest
    for variant in request["variants"]:
        began = time.monotonic()
        family = Family(variant, Path(request["folder"]) / variant, request.get("forget"))
        gc.collect(), gc.freeze()
        result = family.chains(request["kills"])
        print(json.dumps({"variant": variant, "seconds": time.monotonic() - began, **result}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
