"""What a run will need of memory at its peak, predicted before it starts.

A few windows are forecast and trained on, the gradients freed at once, while the bytes of all live tensors are counted.
Activations grow with the number of windows on a straight line, separately for every stretch of the backward pass between
one parameter's gradient and the next; weights, gradients and states are known. On the CPU the process's other memory is
what it has now, after these passes; on CUDA only what torch allocates counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .. import tasks
from ..data import ForecastData
from ..optim import has_states
from ..optim.fused_adamw import BUCKET_BYTES
from ..optim.state import state_shapes
from ..resident import resident_memory, return_freed_memory
from .config import PRECISIONS, Settings
from .live import LiveBytes
from .recompute import recomputing
from .runtime import CAN_RESET_PEAK, peak_memory, reset_peak_memory, seeded
from .strategies import STRATEGIES, Phase, trainable

_TRAINED = (2, 4)
"""Windows that are trained on to find a straight line; fewer where the run has fewer at a time."""

_FORECAST = (4, 8)
_MOST_EXCESS = 0.8
"""Limit of the share that :meth:`MemoryModel._unseen` notes: passes of a few windows over a small model tell it badly."""

_ALIGN = 64
"""Elements that a parameter's states are rounded up to, as in the optimizer's buckets."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Predicted memory of a run, in bytes.

    Attributes:
        process: Everything but what follows: interpreter, libraries, data. 0 on CUDA.
        weights: Parameters and buffers.
        states: Optimizer states.
        best: The copy of the best weights that a run without an output folder keeps in memory; 0 on CUDA.
        gradients: Gradients alive at the training peak that are kept for the optimizer.
        activations: Everything else that a training step holds at its peak.
        evaluation: What a forecast holds at its peak.
        start: Peak while the model is cast to the run's precision, weights included.
        kept: Pre-trained weights that a comparison or sweep keeps on the host for the runs after; 0 on CUDA.
    """

    process: int
    weights: int
    states: int
    best: int
    gradients: int
    activations: int
    evaluation: int
    start: int
    kept: int = 0

    @property
    def training(self) -> int:
        """Peak of a training step."""
        return self._beside + self.weights + self.states + self.best + self.gradients + self.activations

    @property
    def evaluating(self) -> int:
        """Peak of an evaluation between epochs, when the states are there."""
        return self._beside + self.weights + self.states + self.best + self.evaluation

    @property
    def peak(self) -> int:
        """Peak of the run."""
        return max(self.training, self.evaluating, self._beside + self.start)

    @property
    def _beside(self) -> int:
        return self.process + self.kept

    def to_json(self) -> dict[str, int]:
        """All parts and the peak."""
        return {**dataclasses.asdict(self), "training": self.training, "evaluating": self.evaluating, "peak": self.peak}


@dataclasses.dataclass(frozen=True)
class _Step:
    """Live bytes of one forward and backward pass with every gradient freed at once.

    Attributes:
        names: Parameters in the order in which their gradients were there.
        peaks: Peak before each of them was, since the one before; and after the last one.
    """

    names: tuple[str, ...]
    peaks: tuple[int, ...]


class MemoryModel:
    """Predicts the peak of runs of one model on one data set; measures what it needs once.

    The model is as it was afterwards: weights, buffers, mode and random generators.

    Args:
        adapter: The adapter; its model is moved to the device and cast as the run's would be.
        data: The windows.
        settings: Any settings of the runs; strategy, precision, device and seed are what counts.
        in_memory: Whether the best weights are kept in memory, as without an output folder.
        kept: Bytes of pre-trained weights that this process keeps on the host beside the model.
    """

    def __init__(self, adapter: Any, data: ForecastData, settings: Settings, in_memory: bool, kept: int = 0) -> None:
        self._adapter, self._data, self._settings = adapter, data, settings
        self._in_memory, self._kept = in_memory, kept
        self._resident: int | None = None
        self._steps: dict[tuple[int, bool], _Step] = {}
        self._forecasts: dict[int, int] = {}
        self._excess: dict[str, float] = {}
        model = adapter.model
        before = _bytes_of(model)
        model.to(settings.device, PRECISIONS[settings.precision])
        self.weights = _bytes_of(model)
        # Cast a parameter at a time, but memory of small parameters is not given back, and that of a file not at all.
        self._start = max(before, self.weights)
        self._phase = max(STRATEGIES[settings.strategy].phases(settings), key=lambda phase: not phase.head_only, default=None)
        with self._training() as parameters:
            self._parameters = {name: (p.numel(), p.dtype) for name, p in parameters.items()}

    @property
    def on_cpu(self) -> bool:
        """Whether the process's memory counts."""
        return self._settings.device == "cpu"

    def predict(self, settings: Settings) -> Footprint:
        """The memory of a run.

        Args:
            settings: As those that this was made for, but for what is trained at a time and how.
        """
        evaluation = self._evaluation(min(settings.eval_batch_size, max(len(self._data.val), len(self._data.test))))
        gradients = activations = 0
        if self._phase is not None:
            batch = min(settings.batch_size, len(self._data.train))
            gradients, activations = self._training_peak(settings, min(settings.micro_batch, batch), batch)
        return Footprint(
            process=self._process() if self.on_cpu else 0,
            weights=self.weights,
            states=self._states(settings),
            best=self.weights if self._in_memory and self.on_cpu and self._phase is not None else 0,
            gradients=gradients,
            activations=activations + int(self._excess.get("training", 0.0) * (gradients + activations)),
            evaluation=evaluation + int(self._excess.get("evaluation", 0.0) * evaluation),
            start=self._start,
            kept=self._kept if self.on_cpu else 0,
        )

    # --- parts ------------------------------------------------------------------------------------------------------

    def _states(self, settings: Settings) -> int:
        if self._phase is None:
            return 0
        kind = settings.optimizer_state or "float32"
        total = 0
        for elements, dtype in self._parameters.values():
            if not has_states(settings.optimizer):
                total += 2 * elements * dtype.itemsize  # torch's Adam: moments of the parameter's dtype
                continue
            for size, state_dtype in state_shapes(elements, dtype, kind, False, False).values():
                total += -(-size // _ALIGN) * _ALIGN * state_dtype.itemsize
        return total

    def _training_peak(self, settings: Settings, micro: int, batch: int) -> tuple[int, int]:
        """Gradients that are kept, and everything else, when their sum is largest."""
        step = self._step(micro, settings.activation_checkpointing)
        sizes = {name: elements * dtype.itemsize for name, (elements, dtype) in self._parameters.items()}
        if micro < batch:
            held = [sum(sizes.values())] * len(step.peaks)
        elif settings.release_gradients:
            held = self._pending(step.names, sizes)
        else:
            held = [0, *itertools.accumulate(sizes[name] for name in step.names)]
        return max(zip(held, step.peaks), key=sum)

    def _pending(self, names: tuple[str, ...], sizes: Mapping[str, int]) -> list[int]:
        """Bytes of gradients that wait for their bucket to be complete, before each gradient and after the last."""
        home: dict[str, int] = {}
        number, filled, dtype = 0, 0, None
        for name, size in sizes.items():
            if filled and (filled + size > BUCKET_BYTES or self._parameters[name][1] != dtype):
                number, filled = number + 1, 0
            home[name], dtype, filled = number, self._parameters[name][1], filled + size
        missing = {bucket: {name for name in home if home[name] == bucket} for bucket in range(number + 1)}
        waiting = dict.fromkeys(missing, 0)
        held = [0]
        for name in names:
            bucket = home[name]
            missing[bucket].discard(name)
            waiting[bucket] += sizes[name]
            if not missing[bucket]:
                waiting[bucket] = 0
            elif sum(waiting.values()) > BUCKET_BYTES:
                waiting = dict.fromkeys(waiting, 0)
            held.append(sum(waiting.values()))
        return held

    def _step(self, windows: int, recompute: bool) -> _Step:
        """A pass over so many windows: measured where these are few, else on the line through two that are."""
        counts = sorted({min(count, windows) for count in _TRAINED})
        for count in counts:
            if (count, recompute) not in self._steps:
                self._steps[count, recompute] = self._measured_step(count, recompute)
        if windows in counts:
            return self._steps[windows, recompute]
        few, more = (self._steps[count, recompute] for count in counts)
        known = dict(zip((*few.names, None), few.peaks))  # None: what follows the last gradient
        peaks = [_line(counts, (known.get(name, peak), peak), windows) for name, peak in zip((*more.names, None), more.peaks)]
        return _Step(more.names, tuple(peaks))

    def _measured_step(self, windows: int, recompute: bool) -> _Step:
        names: list[str] = []
        peaks: list[int] = []
        with self._training() as parameters, recomputing(self._adapter, recompute), contextlib.ExitStack() as stack:
            live = LiveBytes(_tensors_of(self._adapter.model))
            for name, parameter in parameters.items():

                def there(p: torch.Tensor, name: str = name) -> None:
                    names.append(name)
                    peaks.append(live.take_peak())
                    p.grad = None

                stack.callback(parameter.register_post_accumulate_grad_hook(there).remove)
            batch = self._data.train.batch(torch.arange(windows)).to(self._settings.device)
            with self._unseen("training", lambda: max(peaks)), live:
                loss = self._adapter.loss(batch)
                loss.backward()
                peaks.append(live.take_peak())
        return _Step(tuple(names), tuple(peaks))

    def _evaluation(self, windows: int) -> int:
        counts = sorted({min(count, windows) for count in _FORECAST})
        for count in counts:
            if count not in self._forecasts:
                self._forecasts[count] = self._measured_forecast(count)
        peaks = [self._forecasts[count] for count in counts]
        return peaks[-1] if windows in counts else _line(counts, peaks, windows)

    def _measured_forecast(self, windows: int) -> int:
        part = self._data.val if len(self._data.val) >= len(self._data.test) else self._data.test
        with self._restored():
            batch = part.batch(torch.arange(min(windows, len(part))))
            live = LiveBytes(_tensors_of(self._adapter.model))
            with self._unseen("evaluation", lambda: live.peak), live:
                tasks.evaluation(self._data, "val").predict(self._adapter, batch.to(self._settings.device), seed=0)
            return live.peak

    @contextlib.contextmanager
    def _unseen(self, kind: str, seen: Callable[[], int]) -> Iterator[None]:
        """Note by what share the block takes more of the process's memory at its peak than the tensors that are seen.

        That is what operations allocate for themselves (packed weights of a matrix product) and the gaps of the heap, which
        grow with the tensors. Nothing is noted where the system does not tell the peak.

        Args:
            kind: What the block does; the first block of a kind also loads code, and only the last one counts.
            seen: Peak of the tensors that were seen, asked for when the block has ended.
        """
        if not (self.on_cpu and CAN_RESET_PEAK):
            yield
            return
        return_freed_memory()
        reset_peak_memory("cpu")
        before = resident_memory()
        yield
        more = peak_memory("cpu") - before - seen()
        self._excess[kind] = min(max(0.0, more / max(seen(), 1 << 20)), _MOST_EXCESS) if kind in self._excess else 0.0

    def _process(self) -> int:
        """Resident memory of this process now, without the model's weights, those that are kept among them."""
        if self._resident is None:
            # What the run will import: torch.optim's first optimizer brings torch._dynamo, preparing traces the constructor.
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
            if STRATEGIES[self._settings.strategy].prepare is not None:
                self._adapter.plan()
            gc.collect()
            return_freed_memory()
            self._resident = max(0, resident_memory() - self.weights - self._kept)
        return self._resident

    # --- the model as it was ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _training(self) -> Iterator[dict[str, torch.nn.Parameter]]:
        with self._restored(), trainable(self._adapter, self._phase or Phase("full", 1, False, None)) as parameters:
            self._adapter.model.train()
            yield parameters

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        model = self._adapter.model
        modes = [(module, module.training) for module in model.modules()]
        buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in _buffers_of(model)]
        with seeded(self._settings.seed, self._settings.device):
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training
                for module, name, buffer, values in buffers:
                    module._buffers[name] = buffer
                    buffer.copy_(values)


def _buffers_of(model: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.Tensor]]:
    found = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    return [(module, name, buffer) for module, name, buffer in found if buffer is not None]


def _tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bytes_of(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_of(model))


def _line(counts: list[int], values: tuple[int, ...] | list[int], at: int) -> int:
    """The value at a point of the straight line through two others; it never falls."""
    (first, second), (low, high) = counts, values
    return high + max(0, (high - low) * (at - second) // (second - first))
