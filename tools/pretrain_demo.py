#!/usr/bin/env python3
"""Pre-train the demo's small Timer on the synthetic corpus, on one CPU thread.

    python tools/pretrain_demo.py             # trains, or goes on where a killed run stopped; exports and judges
    python tools/pretrain_demo.py --export    # exports and judges the last checkpoint of a run that still trains
    python tools/pretrain_demo.py --picture   # draws 16 series of the corpus to docs/img/demo-corpus.png

Every patch predicts the next one, as Timer was pre-trained; the loss is the mean squared error after division by the
context's standard deviation. Step k depends on (seed, k) alone, so a resumed run equals an uninterrupted one. The
weather is never trained on: it only judges the result.

Source: Liu et al., "Timer", ICML 2024, arXiv:2402.02368 (the objective); KernelSynth in arXiv:2403.07815 (a corpus of
synthetic series).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import sff_fast  # noqa: E402
from sff_fast import files  # noqa: E402
from sff_fast.adapters.timer import TimerAdapter  # noqa: E402
from sff_fast.data import ForecastData  # noqa: E402
from sff_fast.demo import corpus, model_path, settings, weather  # noqa: E402
from sff_fast.errors import require  # noqa: E402
from sff_fast.metrics import ForecastMetrics  # noqa: E402
from sff_fast.models.timer import NORMALISATION_EPS, Timer, TimerConfig  # noqa: E402
from sff_fast.training.evaluate import evaluate  # noqa: E402

CONFIG = TimerConfig(
    patch_len=96, d_model=128, d_ff=192, e_layers=4, n_heads=4, dropout=0.05, factor=3, activation="gelu", max_patches=9
)
IMAGES = ROOT / "docs" / "img"

N_SERIES, LENGTH = 1024, 1024
BATCH_SIZE = 256
STEPS_PER_SHARD = 12  # three windows of each series on average
N_PATCHES = (1, CONFIG.max_patches)  # the shortest and the longest context, in patches
USUAL_PATCHES = 4  # the context of half of the steps
FIRST_VALIDATION_SHARD = 1 << 32  # out of the training's reach
N_VALIDATION_SHARDS = 2
FIRST_STEP = 1 << 63  # the steps' own random numbers, apart from the shards'
FLAT = 0.02  # a context that is this flat, in units of its series' standard deviation, teaches only its own noise
FARTHEST = 10.0  # normalised targets are cut here, so that a jump after a calm context does not decide the step


@dataclasses.dataclass(frozen=True)
class Training:
    """What decides the result, recorded beside it."""

    seed: int = 0
    steps: int = 10000
    batch_size: int = BATCH_SIZE
    lr: float = 1e-3
    warmup_steps: int = 400
    last_lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    grad_clip: float = 1.0


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up, then a cosine down to ``last_lr``."""
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.last_lr + (training.lr - training.last_lr) * 0.5 * (1 + math.cos(math.pi * done))


class Shards:
    """The shards of the corpus, the last one kept."""

    def __init__(self, seed: int) -> None:
        self._seed, self._index, self._series = seed, -1, np.empty(0)

    def __getitem__(self, index: int) -> np.ndarray:
        if index != self._index:
            self._series, self._index = corpus.shard(self._seed, index, N_SERIES, LENGTH), index
        return self._series


def windows(series: np.ndarray, rng: np.random.Generator, n: int, n_patches: int) -> Tensor:
    """Cut ``n`` windows of ``n_patches + 1`` patches out of random series at random places, [n, time, 1]."""
    length = (n_patches + 1) * CONFIG.patch_len
    rows = rng.integers(len(series), size=(n, 1))
    starts = rng.integers(series.shape[1] - length + 1, size=(n, 1))
    cut = series[rows, starts + np.arange(length)]
    moving = cut[:, : -CONFIG.patch_len].std(axis=1) > FLAT
    return torch.from_numpy(np.ascontiguousarray(cut[moving])).unsqueeze(-1)


def next_patch_loss(model: Timer, window: Tensor) -> Tensor:
    """Mean squared error of every patch's prediction of the next one, after division by the context's deviation."""
    context, target = window[:, : -CONFIG.patch_len], window[:, CONFIG.patch_len :]
    mean = context.mean(dim=1, keepdim=True)
    std = torch.sqrt(context.var(dim=1, keepdim=True, unbiased=False) + NORMALISATION_EPS)
    wanted = ((target - mean) / std).clamp(-FARTHEST, FARTHEST)
    return ((model(context) - mean) / std - wanted).square().mean()


def make_optimizer(model: Timer, training: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, fused=True)


@torch.no_grad()
def validation_loss(model: Timer, shards: list[np.ndarray]) -> float:
    """The loss on fixed windows of shards that are not trained on, at the usual context length."""
    rng = corpus.generator(0, FIRST_STEP - 1)
    model.eval()
    losses = [next_patch_loss(model, windows(series, rng, 1024, USUAL_PATCHES)).item() for series in shards]
    model.train()
    return float(np.mean(losses))


def train_step(model: Timer, optimizer: torch.optim.AdamW, shards: Shards, training: Training, step: int) -> float:
    """Run step number ``step``; everything random in it depends on (seed, step)."""
    rng = corpus.generator(training.seed, FIRST_STEP + step)
    torch.manual_seed(int(rng.integers(1 << 62)))  # dropout
    n_patches = USUAL_PATCHES if rng.random() < 0.5 else int(rng.integers(N_PATCHES[0], N_PATCHES[1] + 1))
    window = windows(shards[step // STEPS_PER_SHARD], rng, training.batch_size, n_patches)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, step)
    optimizer.zero_grad()
    loss = next_patch_loss(model, window)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
    optimizer.step()
    return loss.item()


def train(training: Training, state_path: Path, report_every: int, checkpoint_seconds: float) -> dict:
    """Train to the end, or go on from ``state_path`` where it holds this training's checkpoint.

    Returns:
        The state: model, optimizer, step, losses, validation and seconds.
    """
    torch.manual_seed(training.seed)
    model = Timer(CONFIG)
    optimizer = make_optimizer(model, training)
    identity = {"training": dataclasses.asdict(training), "config": CONFIG.to_dict()}
    state = {"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "losses": [], "validation": [], **identity}
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if found := {key: state[key] for key in identity if state[key] != identity[key]}:
            raise SystemExit(f"{state_path} belongs to another training, {found}: delete it or give its options")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    shards = Shards(training.seed)
    held_out = [corpus.shard(training.seed, FIRST_VALIDATION_SHARD + k, N_SERIES, LENGTH) for k in range(N_VALIDATION_SHARDS)]
    saved = began = time.monotonic()
    cpu_began, recent = time.process_time(), []
    before, cpu_before = state["seconds"], state["cpu_seconds"]

    def save(step: int) -> None:
        state.update(step=step, model=model.state_dict(), optimizer=optimizer.state_dict())
        state["seconds"] = before + time.monotonic() - began
        state["cpu_seconds"] = cpu_before + time.process_time() - cpu_began
        with files.atomic_write(state_path) as file:
            torch.save(state, file)

    for step in range(state["step"], training.steps):
        recent.append(train_step(model, optimizer, shards, training, step))
        done = step + 1
        if done % report_every and done != training.steps:
            continue
        loss, held = float(np.mean(recent)), validation_loss(model, held_out)
        recent.clear()
        state["losses"].append([done, loss])
        state["validation"].append([done, held])
        seconds = before + time.monotonic() - began
        print(f"step {done}/{training.steps}  loss {loss:.4f}  held out {held:.4f}  {seconds:.0f} s", flush=True)
        # Checkpoints lie on reports, so that no half-averaged loss has to be kept.
        if time.monotonic() - saved > checkpoint_seconds or done == training.steps:
            save(done)
            saved = time.monotonic()
    return state


def baselines(context: Tensor, prediction_length: int) -> dict[str, Tensor]:
    """Forecasts [B, H, 1] that need no model, from contexts [B, L, 1] of whole days of hours."""
    length = context.shape[1]
    days = math.ceil(prediction_length / 24)
    return {
        "last value": context[:, -1:].expand(-1, prediction_length, -1),
        "same hour of the day before": context[:, -24:].repeat(1, days, 1)[:, :prediction_length],
        "mean of the context": context.mean(dim=1, keepdim=True).expand(-1, prediction_length, -1),
        "mean of the hour over the context": context.reshape(-1, length // 24, 24, 1)
        .mean(dim=1)
        .repeat(1, days, 1)[:, :prediction_length],
    }


def judge(adapter: TimerAdapter, context_length: int) -> dict:
    """Zero-shot errors on the demo's weather, beside those of forecasts without a model, over all windows."""
    data = ForecastData(weather(), settings.SPLIT, context_length, settings.PREDICTION_LENGTH)
    result: dict = {"context_length": context_length, "prediction_length": settings.PREDICTION_LENGTH}
    for part in ("val", "test"):
        found = evaluate(adapter, data, part, device="cpu")
        errors = {"zero-shot": {"mse": found["mse"], "mae": found["mae"]}}
        sums: dict[str, ForecastMetrics] = {}
        for indices in torch.arange(len(getattr(data, part))).split(4096):
            batch = getattr(data, part).batch(indices)
            for name, forecast in baselines(batch.context, settings.PREDICTION_LENGTH).items():
                metrics = sums.setdefault(name, ForecastMetrics(settings.PREDICTION_LENGTH, len(data.columns)))
                metrics.update(forecast, batch.target, batch.channel)
        errors.update({name: {"mse": metrics.mse, "mae": metrics.mae} for name, metrics in sums.items()})
        result[part] = {"windows": found["windows"], "errors": errors}
        if part == "test":
            by_quantity = np.reshape(found["mse_per_channel"], (3, 6)).mean(axis=0)
            names = [column.split("_", 1)[1] for column in data.columns[:6]]
            result[part]["zero_shot_mse_by_quantity"] = dict(zip(names, by_quantity.tolist(), strict=True))
    return result


def export(state: dict, threads: int) -> dict:
    """Write the model, its record ``training.json`` and the picture of the loss; return the record.

    Args:
        state: What :func:`train` returned or saved.
        threads: Number of threads that it trained with.
    """
    model = Timer(CONFIG)
    model.load_state_dict(state["model"])
    adapter = TimerAdapter(model.eval())
    adapter.save(model_path(), overwrite=True)
    record = {
        "command": "python tools/pretrain_demo.py",
        "training": state["training"],
        "config": state["config"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "corpus": {"n_series": N_SERIES, "length": LENGTH, "steps_per_shard": STEPS_PER_SHARD},
        "context_patches": {"usual": USUAL_PATCHES, "shortest": N_PATCHES[0], "longest": N_PATCHES[1]},
        "steps_done": state["step"],
        "threads": threads,
        "seconds": round(state["seconds"], 1),
        "cpu_seconds": round(state["cpu_seconds"], 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "sff_fast": sff_fast.__version__,
        },
        "weather": [judge(adapter, length) for length in settings.JUDGED_CONTEXT_LENGTHS],
        "losses": [[step, round(loss, 5)] for step, loss in state["losses"]],
        "validation": [[step, round(loss, 5)] for step, loss in state["validation"]],
    }
    files.write_json(model_path() / "training.json", record)
    draw_losses(record, IMAGES / "demo-pretraining.png")
    return record


def draw_losses(record: dict, path: Path) -> None:
    """Draw the loss of training and of the held-out shards."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(*zip(*record["losses"], strict=True), lw=1.2, label="training, contexts of 1 to 9 patches")
    axes.plot(*zip(*record["validation"], strict=True), lw=1.8, label="held-out shards, contexts of 4 patches")
    axes.set_xlabel(f"step of {record['training']['batch_size']} windows")
    axes.set_ylabel("next-patch MSE, instance-normalised")
    axes.set_title("Pre-training of the demo's Timer on the synthetic corpus", fontsize=10)
    axes.set_ylim(top=min(1.2, axes.get_ylim()[1]))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def draw_corpus(seed: int, path: Path) -> None:
    """Draw the first 16 series of the corpus, half of their length."""
    pyplot = _pyplot()
    series = corpus.shard(seed, 0, N_SERIES, LENGTH)[:16, : LENGTH // 2]
    figure, grid = pyplot.subplots(4, 4, figsize=(12, 7), layout="constrained", sharex=True)
    for axes, values in zip(grid.flat, series, strict=True):
        axes.plot(values, lw=0.8)
        axes.tick_params(labelsize=7)
    figure.suptitle("16 series of the synthetic corpus", fontsize=11)
    _save(figure, path)


def _pyplot():
    require("matplotlib", "cli").use("Agg")
    return require("matplotlib.pyplot", "cli", package="matplotlib")


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Train, export and judge; or export, or draw the corpus, alone."""
    default = Training()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "pretrain-demo" / "state.pt")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--export", action="store_true", help="do not train; export and judge the last checkpoint")
    alone.add_argument("--picture", action="store_true", help="do not train; draw the corpus")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.picture:
        draw_corpus(options.seed, IMAGES / "demo-corpus.png")
        return 0
    if options.export:
        state = torch.load(options.state, weights_only=True)
    else:
        training = dataclasses.replace(default, seed=options.seed, steps=options.steps, lr=options.lr)
        options.state.parent.mkdir(parents=True, exist_ok=True)
        state = train(training, options.state, report_every=100, checkpoint_seconds=120)
    record = export(state, options.threads)
    print(f"{model_path()}: {record['parameters']} parameters, {record['steps_done']} steps, {record['seconds']} s")
    for judged in record["weather"]:
        for part in ("val", "test"):
            for name, error in judged[part]["errors"].items():
                where = f"weather {part}, {judged['context_length']} -> {judged['prediction_length']}"
                print(f"{where}: {name:34s} mse {error['mse']:.4f}  mae {error['mae']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
