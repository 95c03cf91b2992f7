"""The training loop: phases of epochs over shuffled windows, each validated, the best one kept, with exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ..data import ForecastData, epoch_order
from ..distributed.parallel import Parallel
from .config import Settings
from .diagnosis import batch_text, explain, parameter_text
from .evaluate import measure
from .interrupts import Interrupted, StopRequest
from .log import RunLog, finite
from .optimizer_state import optimizer_content, restore_optimizer
from .progress import Progress
from .recompute import recomputing
from .runtime import capture_rng, environment, restore_rng, seed_all
from .schedules import SCHEDULES
from .stages import Stages
from .state import Saved, StateStore, join_tensors, split_tensors
from .stepping import NotFiniteLossError, Stepper
from .strategies import STRATEGIES, Method, Phase, trainable
from .weights import BestWeights, load_weights, weights_of

LOG_EVERY = 10
"""Steps between two step lines in the log."""


@dataclasses.dataclass
class Position:
    """Where a run is and what it has found: everything but tensors and random generators. The state keeps it as JSON.

    Attributes:
        phase: Index of the phase.
        phase_epoch: Finished epochs of the phase.
        phase_start: The step at which the phase began.
        epoch: Finished epochs of the run.
        position: Windows of the present epoch that have been trained on.
        step: Optimizer steps of the run.
        loss_sum: Training loss of the present epoch, summed over its windows.
        best_mse: Validation MSE of the best candidate, None before there is one.
        best_epoch: Epoch of the best weights; 0 are the weights before training.
        best_metrics: All validation metrics of the best weights.
        since_best: Epochs since the last improvement, or since the phase began.
        diverged: What was not finite and when, or None.
        epoch_seconds: Time spent on the present epoch's steps.
        seconds: Time spent on the run.
        history: The epoch records.
    """

    phase: int = 0
    phase_epoch: int = 0
    phase_start: int = 0
    epoch: int = 0
    position: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_mse: float | None = None
    best_epoch: int = 0
    best_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    since_best: int = 0
    diverged: str | None = None
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Trainer:
    """One run of training with the adapter's model, in place; at its end the model has the best weights.

    Args:
        adapter: The adapter; its model is prepared (smoothed, filled, or as it was) and on the run's device.
        data: The windows.
        settings: The settings.
        method: What the strategy does beside the loop, attached; None for nothing.
        log: The log.
        store: Where states are saved, or None.
        frozen: JSON values that go into every state beside the position, such as what a resumed run must agree on.
        best: The best weights.
        model_directory: Where the best model is written after every epoch that improves on it, or None.
        stop: Asked after every step.
        progress: Told after every step.
        parallel: The processes that train together, each with a trainer of its own; the model is placed. Default: this one
            alone.
        stages: Told of the run's stages. Default: of its own.
    """

    def __init__(
        self,
        adapter: Any,
        data: ForecastData,
        settings: Settings,
        *,
        method: Method | None = None,
        log: RunLog,
        store: StateStore | None,
        frozen: dict[str, Any],
        best: BestWeights,
        model_directory: Path | None,
        stop: StopRequest,
        progress: Progress,
        parallel: Parallel | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.adapter = adapter
        self.data = data
        self.settings = settings
        self.method = Method(adapter, settings) if method is None else method
        self.log = log
        self.store = store
        self.frozen = frozen
        self.best = best
        self.model_directory = model_directory
        self.stop = stop
        self.progress = progress
        self.parallel = Parallel() if parallel is None else parallel
        self.stages = Stages(settings.device) if stages is None else stages
        self.phases = STRATEGIES[settings.strategy].phases(settings)
        self.windows = len(data.train)
        self.at = Position()
        self._optimizer: torch.optim.Optimizer | None = None
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._saved_optimizer: Saved | None = None
        self._clock = time.monotonic()

    # --- the run ----------------------------------------------------------------------------------------------------

    def begin(self, metrics: dict[str, Any] | None = None) -> None:
        """Record the weights before training as epoch 0, seed the random generators and save the first state.

        Args:
            metrics: Their validation metrics where they are known already; None validates them.
        """
        with self.method.evaluating():
            metrics = self._validate() if metrics is None else metrics
            seed_all(self.settings.seed, self.settings.device)
            self.best.store(self.adapter.model)
        self.at.best_metrics = metrics
        if self.settings.keep_initial:
            self.at.best_mse = metrics["mse"]
        self._record("initial", None, None, metrics, improved=self.settings.keep_initial)
        self._save()

    def restore(self, saved: Saved) -> None:
        """Put model, best weights, random generators and position where a save has them."""
        self.at = Position(**saved.content["position"])
        self.frozen = {name: saved.content[name] for name in self.frozen}
        load_weights(self.adapter.model, saved.tensors("weights", weights_of(self.adapter.model).get))
        if saved.content.get("method") is not None:
            self.method.load_state(join_tensors(saved.content["method"], dict(saved.tensors("method"))))
        self.best.restore(saved.directory / "best.safetensors")
        if saved.content["rng"] is None:  # that of several processes, which seed every step
            seed_all(self.settings.seed, self.settings.device)
        else:
            restore_rng(dict(saved.tensors("rng")), saved.content["rng"], self.settings.device)
        self._saved_optimizer = saved

    def run(self) -> None:
        """Train through the phases that are left, then load the best weights into the model.

        Raises:
            Interrupted: A stop was asked for. The state is saved and the best model so far is written.
        """
        try:
            while True:
                phase = self.phases[self.at.phase]
                self._train_phase(phase)
                if self.at.diverged or self.at.phase + 1 == len(self.phases):
                    break
                # The next phase starts from the best weights of this one, which stay a candidate for the best.
                self.best.load(self.adapter.model)
                self.at.phase += 1
                self.at.phase_epoch, self.at.phase_start, self.at.since_best = 0, self.at.step, 0
        except Interrupted:
            self._save()
            self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        """Load the best weights, and write the model where no epoch has done so."""
        self.method.detach()
        self.best.load(self.adapter.model)
        if self.model_directory is None:
            return
        if self.parallel.group.lead(lambda: self.at.best_epoch == 0 or not self.model_directory.exists()):
            self.parallel.save(self.adapter, self.model_directory)

    def stopped_because(self) -> str | None:
        """Why the run ended before its last epoch, or None."""
        phase = self.phases[self.at.phase]
        if self.at.diverged is not None:
            return self.at.diverged
        if self._out_of_patience():
            return f"no better validation MSE for {self.at.since_best} epochs"
        if self._out_of_steps(phase) and self.at.phase_epoch < phase.epochs:
            return f"max_steps ({self.settings.max_steps}) reached"
        return None

    # --- phases and epochs ------------------------------------------------------------------------------------------

    def _train_phase(self, phase: Phase) -> None:
        settings, at = self.settings, self.at
        with contextlib.ExitStack() as stack:
            parameters = stack.enter_context(trainable(self.adapter, phase))
            stack.enter_context(recomputing(self.adapter, settings.activation_checkpointing))
            self.stages.begin_phase()
            example = self.data.train.batch(torch.tensor([0])).to(settings.device)
            stack.enter_context(self.parallel.training(self.adapter, example))
            stepper = Stepper(self.adapter, self.data, settings, parameters, self.parallel, self.method)
            stack.callback(stepper.close)
            self._optimizer, self._parameters = stepper.optimizer, parameters
            if self._saved_optimizer is not None:
                self._restore_optimizer(self._saved_optimizer)
                self._saved_optimizer = None
            while not (
                at.diverged
                or self._out_of_patience()
                or at.phase_epoch == phase.epochs
                or (self._out_of_steps(phase) and at.position == 0)
            ):
                self._train_epoch(phase, stepper)
                if not at.diverged:
                    with self.method.evaluating():
                        self._close_epoch(phase)
                self._save()
            self._optimizer, self._parameters = None, {}

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.at.since_best >= self.settings.patience

    def _out_of_steps(self, phase: Phase) -> bool:
        return phase.last_step is not None and self.at.step >= phase.last_step

    def _train_epoch(self, phase: Phase, stepper: Stepper) -> None:
        settings, at = self.settings, self.at
        factor, steps = SCHEDULES[settings.schedule], self._steps(phase)
        self.data.begin_epoch(settings.seed, at.epoch)
        order = epoch_order(self.windows, settings.seed, at.epoch)
        self.adapter.model.train()
        began = time.monotonic() - at.epoch_seconds
        while at.position < self.windows and not self._out_of_steps(phase):
            indices = order[at.position : at.position + settings.batch_size]
            lr = settings.lr * factor(at.phase_epoch, at.step - at.phase_start, steps)
            try:
                value = stepper.step(indices, lr, at.step)
            except NotFiniteLossError as error:
                before = order[max(0, at.position - settings.batch_size) : at.position] if at.position else None
                group = self.parallel.group
                cause = explain(self.adapter, self.data, indices, before, at.step, settings.seed, settings.device, group)
                self._diverge(f"{error} at step {at.step + 1}, in epoch {at.epoch + 1}, of {batch_text(indices)}: {cause}")
                return
            count = len(indices)
            at.position += count
            at.step += 1
            at.loss_sum += value * count
            at.epoch_seconds = time.monotonic() - began
            self.progress.update(count, stage="train", epoch=at.epoch + 1, loss=value, lr=lr)
            if at.step % LOG_EVERY == 0:
                self.log.write("step", epoch=at.epoch + 1, step=at.step, loss=value, lr=lr)
            self.stages.stepped()
            self.stop.check()
            if settings.checkpoint_every is not None and at.step % settings.checkpoint_every == 0:
                self._save()

    def _close_epoch(self, phase: Phase) -> None:
        """Validate what an epoch has led to, and keep it where it is the best."""
        at = self.at
        metrics = self._validate()
        mse, train_loss = metrics["mse"], at.loss_sum / at.position
        lr = self._optimizer.param_groups[0]["lr"]
        improved = mse is not None and (at.best_mse is None or mse < at.best_mse)
        at.epoch += 1
        at.phase_epoch += 1
        at.since_best += 1
        if improved:
            at.best_mse, at.best_epoch, at.best_metrics, at.since_best = mse, at.epoch, metrics, 0
            self.best.store(self.adapter.model)
            if self.model_directory is not None:
                self.parallel.save(self.adapter, self.model_directory)
        self._record(phase.name, train_loss, lr, metrics, improved)
        at.position, at.loss_sum, at.epoch_seconds = 0, 0.0, 0.0
        if mse is None:
            cause = parameter_text(self.adapter.model, self.parallel.group)
            text = f"the forecasts for the validation part are not finite after epoch {at.epoch}"
            self._diverge(text if cause is None else f"{text}: {cause}")

    def _validate(self) -> dict[str, Any]:
        return measure(
            self.adapter,
            self.data,
            "val",
            batch_size=self.settings.eval_batch_size,
            device=self.settings.device,
            stop=self.stop,
            progress=self.progress,
            parallel=self.parallel,
            stages=self.stages,
        )

    def _steps(self, phase: Phase) -> int:
        """Steps that the phase can take."""
        steps = phase.epochs * math.ceil(self.windows / self.settings.batch_size)
        return steps if phase.last_step is None else min(steps, phase.last_step - self.at.phase_start)

    def _diverge(self, reason: str) -> None:
        kept = f"the best weights, of epoch {self.at.best_epoch}, are kept"
        self.at.diverged = f"{reason}: training stopped"
        self.log.write("stop", reason=self.at.diverged)
        advice = "try a smaller lr or grad_clip"
        warnings.warn(f"{self.settings.strategy}: {self.at.diverged}; {kept}; {advice}", stacklevel=2)

    def _record(self, phase: str, train_loss: float | None, lr: float | None, metrics: dict[str, Any], improved: bool) -> None:
        at = self.at
        record = {
            "epoch": at.epoch,
            "phase": phase,
            "step": at.step,
            "lr": lr,
            "train_loss": train_loss,
            "val_mse": metrics["mse"],
            "val_mae": metrics["mae"],
            "best": improved,
            "seconds": at.epoch_seconds,
            "throughput": at.position / at.epoch_seconds if at.epoch_seconds > 0 else None,
        }
        at.history.append(record)
        self.log.write("epoch", **record)
        self.progress.epoch(record)

    # --- state ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Add the time since the last call to the run's seconds."""
        now = time.monotonic()
        self.at.seconds += now - self._clock
        self._clock = now

    def _save(self) -> None:
        self.tick()
        if self.store is None:
            return
        alone = self.parallel.group.size == 1
        tensors, rng, optimizer = {"weights": weights_of(self.adapter.model)}, None, None
        if alone:
            tensors["rng"], rng = capture_rng(self.settings.device)
        if self._optimizer is not None:
            optimizer, tensors["optimizer"] = optimizer_content(self._optimizer, self._parameters, alone)
        method = self.method.state() or None
        if method is not None:
            tensors["method"] = {}
            method = split_tensors(method, tensors["method"])
        content = {
            **self.frozen,
            "position": finite(dataclasses.asdict(self.at)),
            "scheduler": {"schedule": self.settings.schedule, "lr": self.settings.lr},
            "optimizer": optimizer,
            "method": method,
            "rng": rng,
            "environment": environment(),
            "log_bytes": self.log.sync(),
        }
        self.store.save(content, tensors, {"best": self.best.path})

    def _restore_optimizer(self, saved: Saved) -> None:
        restore_optimizer(self._optimizer, self._parameters, saved, alone=self.parallel.group.size == 1)
