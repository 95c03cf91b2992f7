"""``finetune`` by several processes: the same data order, losses and checkpoints whatever their number."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import tasks
from ..data import ForecastData, epoch_order
from ..errors import ArgumentError, CheckpointError
from ..files import write_json
from ..optim import make_optimizer
from ..smooth import fill_, remember_smoothing, smooth_, smoothing_of
from ..training.identity import differences
from ..training.interrupts import Interrupted, stop_requests
from ..training.log import RunLog, as_json
from ..training.output import begin_output, check_output
from ..training.result import zero_shot_entry
from ..training.schedules import SCHEDULES
from ..version import __version__
from .evaluate import evaluate
from .group import Group, join
from .samplers import share_of
from .state import Store
from .wrapping import PARALLEL, gather_into, scatter_from, wrap

STRATEGIES = ("ff", "sff", "tfs")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the result of a job; see :func:`finetune`."""

    strategy: str
    alpha: float | dict[str, float] | None
    seed: int
    epochs: int
    batch_size: int
    lr: float
    max_steps: int | None
    schedule: str
    patience: int | None
    optimizer: str
    optimizer_state: str | None
    weight_decay: float
    grad_clip: float | None
    eval_batch_size: int


@dataclasses.dataclass
class Position:
    """Where a job is; the saves hold it."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_mse: float | None = None
    best_epoch: int = 0
    since_best: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Result:
    """What a job gave; the same on every process.

    Attributes:
        best_epoch: Epoch of the best weights, which the model has.
        val_mse: Their validation MSE.
        test: Their errors on the test part.
        zero_shot: The pre-trained model's entry of ``metrics.json``.
        history: One record an epoch.
        model_dir: The best model in the family's layout, or None without ``out``.
    """

    best_epoch: int
    val_mse: float | None
    test: dict[str, Any]
    zero_shot: dict[str, Any]
    history: list[dict[str, Any]]
    model_dir: Path | None


def finetune(
    adapter: Any,
    data: ForecastData,
    strategy: str = "sff",
    alpha: float | Mapping[str, float] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    parallel: str = "ddp",
    epochs: int = 10,
    batch_size: int = 32,
    micro_batch: int | None = None,
    lr: float | None = None,
    max_steps: int | None = None,
    schedule: str = "halving",
    patience: int | None = 3,
    optimizer: str = "adam",
    optimizer_state: str | None = None,
    weight_decay: float = 0.0,
    grad_clip: float | None = None,
    device: str = "auto",
    eval_batch_size: int = 256,
    checkpoint_every: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    plan: Any = None,
) -> Result:
    """Fine-tune a model under ``torchrun``; without it, in this process alone.

    Batches are those of one process: ``batch_size`` windows over all processes, in the same order. The number of
    processes, DDP or FSDP2 and ``micro_batch`` change the order in which gradients are summed, and dropout masks; nothing
    else. ``out/state`` can be resumed by any number of processes. The model ends with the best weights.

    Args:
        adapter: The model with its pre-trained weights, the same in every process.
        data: The windows.
        strategy: ``"sff"`` (smoothed full fine-tuning, default), ``"ff"`` or ``"tfs"`` (from scratch).
        alpha: Share of the pre-trained weights for ``sff``. Default: the family's, 0.7.
        seed: Decides random weights, the order of windows and dropout.
        out: Folder for metrics, log, model and state, one that all processes see. Default None: nothing is written.
        parallel: ``"ddp"`` (default) or ``"fsdp"``: parameters, gradients and optimizer states are sharded.
        epochs: Passes over the train windows. Default 10.
        batch_size: Windows a step, over all processes. Default 32.
        micro_batch: Windows that one process takes at a time; gradients are accumulated and averaged once a step. Default:
            all of its part.
        lr: Learning rate at the start. Default: the family's.
        max_steps: Stop after so many steps. Default None.
        schedule: As for :func:`sff_fast.finetune`.
        patience: Stop after so many epochs in a row without a better validation MSE. Default 3; None never does.
        optimizer: As for :func:`sff_fast.finetune`; the fused ones step their shard alone.
        optimizer_state: As for :func:`sff_fast.finetune`. int8 states are saved as float32 and coded again.
        weight_decay: Default 0.
        grad_clip: Limit for the norm of all gradients. Default None.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        eval_batch_size: Windows at a time in evaluations. Default 256.
        checkpoint_every: Save every so many steps too. Default None: after every epoch.
        resume: Continue the job in ``out``; where there is none, start it.
        overwrite: Remove an earlier run in ``out`` first.
        plan: The init plan. Default: ``adapter.plan()``.

    Returns:
        The result.

    Raises:
        ArgumentError: A setting is not allowed.
        CheckpointError: The job in ``out`` has other settings or data, or no save is whole.
        BackendError: Another process of the job was lost.
    """
    recipe = Recipe(
        strategy=_one_of("strategy", strategy, STRATEGIES),
        alpha=as_json(adapter.default_alpha if alpha is None else alpha) if strategy == "sff" else None,
        seed=seed,
        epochs=_at_least("epochs", epochs, 1),
        batch_size=_at_least("batch_size", batch_size, 1),
        lr=float(adapter.default_lr if lr is None else lr),
        max_steps=None if max_steps is None else _at_least("max_steps", max_steps, 1),
        schedule=_one_of("schedule", schedule, tuple(SCHEDULES)),
        patience=None if patience is None else _at_least("patience", patience, 1),
        optimizer=optimizer,
        optimizer_state=optimizer_state,
        weight_decay=float(weight_decay),
        grad_clip=None if grad_clip is None else float(grad_clip),
        eval_batch_size=_at_least("eval_batch_size", eval_batch_size, 1),
    )
    _one_of("parallel", parallel, PARALLEL)
    if micro_batch is not None:
        _at_least("micro_batch", micro_batch, 1)
    tasks.check(adapter, data)
    with join(device) as group, stop_requests() as stop:
        folder = None if out is None else _open(out, resume, overwrite, adapter.source, group)
        job = _Job(adapter, data, recipe, group, folder, parallel, micro_batch, checkpoint_every)
        try:
            return job.run(plan, stop)
        except Interrupted:
            stop.leave()
            raise


def _at_least(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ArgumentError(f"{name} must be an integer of at least {low}, got {value!r}")
    return value


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ArgumentError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _open(out: str | Path, resume: bool, overwrite: bool, source: Path | None, group: Group) -> Path:
    """Check and make the output folder in one process; an error there is everybody's."""
    error = None
    if group.writes:
        try:
            begin_output(check_output(out, resume, overwrite, source), overwrite)
        except (ArgumentError, OSError) as caught:
            error = caught
    error = group.say(error)
    if error is not None:
        raise error
    return Path(out)


class _Job:
    """One job in one process."""

    def __init__(
        self,
        adapter: Any,
        data: ForecastData,
        recipe: Recipe,
        group: Group,
        folder: Path | None,
        parallel: str,
        micro_batch: int | None,
        checkpoint_every: int | None,
    ) -> None:
        self.adapter, self.data, self.recipe, self.group, self.folder = adapter, data, recipe, group, folder
        self.parallel, self.micro_batch, self.checkpoint_every = parallel, micro_batch, checkpoint_every
        self.at = Position()
        self.store = None if folder is None else Store(folder / "state", group)
        self.identity = as_json(
            {
                "family": adapter.family,
                "variant": adapter.variant,
                "model": adapter.config(),
                "data": {key: value for key, value in data.describe().items() if key != "source"},
                "settings": dataclasses.asdict(recipe),
            }
        )

    # --- the whole ----------------------------------------------------------------------------------------------------
    def run(self, plan: Any, stop: Any) -> Result:
        saved = None if self.store is None else self.store.newest()
        if saved is not None:
            self._check(saved)
        model = self.adapter.model.to(self.group.device)
        # What is written in the family's layout, and the best weights: whole, in the writing process alone, on the CPU.
        self.twin = copy.deepcopy(self.adapter) if self.group.writes else None
        if self.twin is not None:
            self.twin.model.to("cpu")
        self.wrapped = wrap(model, self.group, self.parallel, unused=self.parallel == "ddp" and self._leaves_unused())
        log_bytes = 0 if saved is None else saved[1]["log_bytes"]
        log = RunLog(self.folder / "log.jsonl" if self.folder is not None and self.group.writes else None, log_bytes)
        try:
            return self._run(plan, stop, saved, log)
        finally:
            log.close()

    def _run(self, plan: Any, stop: Any, saved: tuple[Path, dict[str, Any]] | None, log: RunLog) -> Result:
        recipe, model = self.recipe, self.adapter.model
        if saved is None:
            began = time.monotonic()
            val, test = self._measure("val"), self._measure("test")
            self.zero_shot = self.group.say(zero_shot_entry(val, test, time.monotonic() - began, 0))
            self._prepare(plan)
            log.write("start", **self.identity)
            log.write("zero_shot", **self.zero_shot)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(recipe.optimizer, parameters, recipe.lr, recipe.weight_decay, recipe.optimizer_state)
        if saved is None:
            self._keep_best()
            self._save(log)
        else:
            self._restore(saved)
        while not self._finished():
            try:
                self._epoch(parameters, log, stop)
            except Interrupted:
                self._save(log)
                raise
            self._close_epoch(log)
            self._save(log)
        scatter_from(None if self.twin is None else self.twin.model, model, self.group)
        test, at = self._measure("test"), self.at
        model.eval()
        model_dir = None if self.folder is None else self.folder / "model"
        result = Result(at.best_epoch, at.best_mse, test, self.zero_shot, at.history, model_dir)
        if self.folder is not None and self.group.writes:
            self.twin.save(model_dir, overwrite=True)
            entry = {"best_epoch": at.best_epoch, "val_mse": at.best_mse, "test_mse": test["mse"], "test_mae": test["mae"]}
            run = {"strategy": recipe.strategy, "alpha": recipe.alpha, "seed": recipe.seed, **entry, "metrics": {"test": test}}
            log.write("end", **entry)
            metrics = {"sff_fast": __version__, **self.identity, "zero_shot": self.zero_shot, "runs": [run]}
            write_json(self.folder / "metrics.json", as_json(metrics))
        self.group.barrier()
        return result

    def _leaves_unused(self) -> bool:
        """Whether the loss leaves parameters out, found by one backward pass of one window."""
        model = self.adapter.model.eval()
        self.adapter.loss(self.data.train.batch(torch.tensor([0])).to(self.group.device)).backward()
        unused = any(p.grad is None for p in model.parameters() if p.requires_grad)
        model.zero_grad(set_to_none=True)
        return unused

    def _finished(self) -> bool:
        recipe, at = self.recipe, self.at
        out_of_patience = recipe.patience is not None and at.since_best >= recipe.patience
        out_of_steps = recipe.max_steps is not None and at.step >= recipe.max_steps and at.position == 0
        return at.epoch >= recipe.epochs or out_of_patience or out_of_steps

    def _prepare(self, plan: Any) -> None:
        """Smooth or fill: each process its own shard."""
        recipe, model = self.recipe, self.adapter.model
        plan = self.adapter.plan() if plan is None and recipe.strategy != "ff" else plan
        if recipe.strategy == "sff":
            smooth_(model, plan, alpha=recipe.alpha, seed=recipe.seed)
        elif recipe.strategy == "tfs":
            fill_(model, plan, seed=recipe.seed)

    def _measure(self, part: str) -> dict[str, Any]:
        options = {"batch_size": self.recipe.eval_batch_size, "call": self.wrapped.run}
        return evaluate(self.adapter, self.data, part, self.group, **options)

    # --- training -----------------------------------------------------------------------------------------------------
    def _epoch(self, parameters: list[torch.nn.Parameter], log: RunLog, stop: Any) -> None:
        recipe, at, windows = self.recipe, self.at, len(self.data.train)
        self.data.begin_epoch(recipe.seed, at.epoch)
        order = epoch_order(windows, recipe.seed, at.epoch)
        steps = recipe.epochs * math.ceil(windows / recipe.batch_size)
        steps = steps if recipe.max_steps is None else min(steps, recipe.max_steps)
        self.adapter.model.train()
        while at.position < windows and not (recipe.max_steps is not None and at.step >= recipe.max_steps):
            batch = order[at.position : at.position + recipe.batch_size]
            lr = recipe.lr * SCHEDULES[recipe.schedule](at.epoch, at.step, steps)
            for settings in self.optimizer.param_groups:
                settings["lr"] = lr
            loss = self._backward(batch)
            loss, stopped = self.group.sum(torch.tensor([loss, float(stop.signal is not None)], dtype=torch.float64)).tolist()
            if not math.isfinite(loss):
                raise ArgumentError(f"the training loss is {loss} at step {at.step + 1}: try a smaller lr or grad_clip")
            if recipe.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            at.position += len(batch)
            at.step += 1
            at.loss_sum += loss * len(batch)
            log.write("step", epoch=at.epoch + 1, step=at.step, loss=loss, lr=lr)
            if stopped:  # some process was asked to: all end after the same step
                stop.signal = stop.signal or 15
                raise Interrupted
            if self.checkpoint_every is not None and at.step % self.checkpoint_every == 0:
                self._save(log)

    def _backward(self, batch: torch.Tensor) -> float:
        """Gradients of the batch's mean loss, averaged over processes; returns this process's part of that loss."""
        group = self.group
        share = share_of(batch, group.rank, group.size)
        largest = -(-len(batch) // group.size)
        count = 1 if self.micro_batch is None else -(-largest // self.micro_batch)
        total = 0.0
        for i, part in enumerate(torch.tensor_split(share, count)):
            # Every process makes the same number of passes; one without windows takes any, with weight 0.
            used = part if len(part) else batch[:1]
            torch.manual_seed(_mixed(self.recipe.seed, self.at.step, group.rank, i))
            windows = self.data.train.batch(used).to(group.device)
            with self.wrapped.accumulating(i + 1 < count):
                loss = self.wrapped.train(self.adapter.loss, windows)
                weight = len(part) / len(batch)
                (loss * (weight * group.size)).backward()
            total += loss.item() * weight if len(part) else 0.0
        return total

    def _close_epoch(self, log: RunLog) -> None:
        at, metrics = self.at, self._measure("val")
        mse = metrics["mse"]
        improved = mse is not None and (at.best_mse is None or mse < at.best_mse)
        train_loss = at.loss_sum / at.position
        at.epoch += 1
        at.since_best += 1
        if improved:
            at.best_mse, at.best_epoch, at.since_best = mse, at.epoch, 0
            self._keep_best()
        record = {"epoch": at.epoch, "step": at.step, "train_loss": train_loss, "val_mse": mse, "best": improved}
        at.history.append(record)
        log.write("epoch", **record)
        at.position, at.loss_sum = 0, 0.0
        if mse is None:
            warnings.warn(f"training stopped: {metrics['not_finite']}", stacklevel=2)
            at.epoch = self.recipe.epochs

    def _keep_best(self) -> None:
        """Gather the weights in the writing process, and write them."""
        gather_into(None if self.twin is None else self.twin.model, self.adapter.model)
        if self.twin is not None and self.folder is not None:
            remember_smoothing(self.twin.model, smoothing_of(self.adapter.model))
            self.twin.save(self.folder / "model", overwrite=True)

    # --- saves --------------------------------------------------------------------------------------------------------
    def _save(self, log: RunLog) -> None:
        if self.store is None:
            return
        content = {
            "identity": self.identity,
            "zero_shot": self.zero_shot,
            "smoothing": smoothing_of(self.adapter.model),
            "position": dataclasses.asdict(self.at),
            "log_bytes": log.sync(),
        }
        best = self.twin.model if self.twin is not None else None
        self.store.save(self.adapter.model, self.optimizer, as_json(content), best)

    def _check(self, saved: tuple[Path, dict[str, Any]]) -> None:
        found = differences(saved[1]["identity"], self.identity)
        if found:
            raise CheckpointError(f"the job in {str(self.folder)!r} is another one ({'; '.join(found)}): choose another folder")

    def _restore(self, saved: tuple[Path, dict[str, Any]]) -> None:
        folder, content = saved
        self.at = Position(**content["position"])
        self.zero_shot = content["zero_shot"]
        self.store.load(folder, self.adapter.model, self.optimizer)
        remember_smoothing(self.adapter.model, content["smoothing"])
        if self.twin is not None:
            self.store.load_best(folder, self.twin.model)
            remember_smoothing(self.twin.model, content["smoothing"])


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return mixed
