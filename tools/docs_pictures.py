"""Draws the pictures of docs/concepts.md: what smoothing does, how the random stream is addressed, where memory goes.

Run from the repository root: ``python tools/docs_pictures.py [FOLDER]``, default ``docs/img``. Everything shown is computed here:
the weights are those of the demo's model, the draws those of its plan, the bytes those that the optimizers say of themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import sff_fast
from sff_fast.demo.shipped import model_path
from sff_fast.report.theme import LIGHT

ROOT = Path(__file__).resolve().parents[1]
NAME = "decoder.attn_layers.0.attention.query_projection.weight"
"""The parameter that is shown."""
ALPHA = 0.7
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["muted"],
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "figure.dpi": 160,
}
BYTES = {
    "smoothing with a second model": {"weights": 4, "second model": 4},
    "smoothing by sff_fast": {"weights": 4},
    "training, float32, torch's AdamW": {"weights": 4, "gradients": 4, "optimizer states": 8},
    "training, int8 states, released gradients": {"weights": 4, "optimizer states": 2.03},
    "the same in bf16-sr": {"weights": 2, "optimizer states": 2.03},
}
"""Bytes a parameter, activations apart; docs/optimizer.md measures them."""
COLOURS = {"weights": LIGHT["ff"], "second model": LIGHT["sff"], "gradients": LIGHT["zero-shot"], "optimizer states": LIGHT["lp"]}


def smoothing(path: Path) -> None:
    """Histogram of a layer's weights before, drawn and after, and how far each alpha lies from both ends."""
    adapter = sff_fast.load("timer", model_path())
    before = dict(adapter.model.named_parameters())[NAME].detach().clone()
    drawn = adapter.plan().sample(NAME, seed=0)
    sff_fast.smooth_(adapter.model, alpha=ALPHA, seed=0)
    after = dict(adapter.model.named_parameters())[NAME].detach()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.4, 3.5), width_ratios=(3, 2))
    bins = np.linspace(*np.quantile(before.numpy(), (0.002, 0.998)), 90)
    shown = (
        (before, "pre-trained", LIGHT["ff"]),
        (drawn, "random: the constructor's draw", LIGHT["zero-shot"]),
        (after, "smoothed: 0.7 pre-trained + 0.3 random", LIGHT["sff"]),
    )
    for values, label, colour in shown:
        left.hist(values.numpy().ravel(), bins, histtype="step", linewidth=1.8, color=colour, label=label, density=True)
    left.set(yticks=[], xlabel="value of a weight")
    left.spines["left"].set_visible(False)
    left.legend(frameon=False, fontsize=8.5, loc="upper left")
    left.set_ylim(top=left.get_ylim()[1] * 1.35)
    alphas = np.linspace(0, 1, 21)
    mixed = [float(a) * before + (1 - float(a)) * drawn for a in alphas]
    for other, label, colour in ((before, "pre-trained", LIGHT["ff"]), (drawn, "random", LIGHT["zero-shot"])):
        angle = [float(torch.nn.functional.cosine_similarity(m.flatten(), other.flatten(), dim=0)) for m in mixed]
        right.plot(alphas, angle, color=colour, linewidth=1.8, label=f"with the {label} weights")
    right.axvline(ALPHA, color=LIGHT["sff"], linestyle="--", linewidth=1.2)
    right.text(ALPHA - 0.02, 0.04, "alpha = 0.7", color=LIGHT["sff"], ha="right", fontsize=8.5)
    right.set(xlabel="alpha", ylabel="cosine of the smoothed weights", ylim=(-0.03, 1.05))
    right.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1))
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def stream(path: Path) -> None:
    """Twelve elements of one parameter: their blocks, their numbers, and two shards that compute their own."""
    drawn = sff_fast.load("timer", model_path()).plan().sample(NAME, seed=0).flatten()[:12]
    figure, axis = pyplot.subplots(figsize=(9.4, 3.3))
    axis.set(xlim=(-1.8, 12.1), ylim=(-1.55, 3.1))
    axis.axis("off")
    blocks = (LIGHT["ff"], LIGHT["sff"], LIGHT["tfs"])
    axis.text(-1.8, 2.65, f'seed 0 = the key      blake2b("{NAME}") = the stream', fontsize=9.5, color=LIGHT["muted"])
    for block, colour in enumerate(blocks):
        axis.text(4 * block + 1.96, 2.02, f"Philox block {block}", ha="center", color=colour, fontsize=10, weight="bold")
        axis.plot([4 * block + 0.05, 4 * block + 3.87], [1.88, 1.88], color=colour, linewidth=2)
    for i, value in enumerate(drawn.tolist()):
        colour = blocks[i // 4]
        axis.add_patch(Rectangle((i, 0.45), 0.92, 1.25, facecolor=colour, alpha=0.14, edgecolor=colour))
        axis.text(i + 0.46, 1.36, f"word {i % 4}", ha="center", va="center", fontsize=8, color=LIGHT["muted"])
        axis.text(i + 0.46, 0.85, f"{value:+.3f}", ha="center", va="center", fontsize=8.5)
        axis.text(i + 0.46, 0.2, str(i), ha="center", va="center", fontsize=8, color=LIGHT["muted"])
    axis.text(-0.15, 0.85, "draw", ha="right", va="center", fontsize=9)
    axis.text(-0.15, 0.2, "element", ha="right", va="center", fontsize=9, color=LIGHT["muted"])
    for begin, end, text in (
        (0, 6, "rank 0 holds 0 to 5: computes blocks 0 and 1"),
        (6, 12, "rank 1 holds 6 to 11: blocks 1 and 2"),
    ):
        axis.plot([begin + 0.05, end - 0.13], [-0.35, -0.35], color=LIGHT["ink"], linewidth=1.4)
        axis.text((begin + end) / 2 - 0.04, -0.82, text, ha="center", fontsize=9.5)
    axis.text(
        5.96, -1.4, "the same numbers on one device, on two, in any order: nothing is communicated", ha="center", fontsize=9.5
    )
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def memory(path: Path) -> None:
    """Bytes a parameter of smoothing and of training, stacked by what they are for."""
    figure, axis = pyplot.subplots(figsize=(9.4, 3.1))
    for row, parts in enumerate(reversed(BYTES.values())):
        _stacked(axis, row, parts)
    axis.set_yticks(range(len(BYTES)), list(reversed(BYTES)), fontsize=9)
    axis.set(xlabel="bytes a parameter at the peak, activations apart", xlim=(0, 18))
    axis.tick_params(left=False)
    axis.spines["left"].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axis.legend(handles, COLOURS, frameon=False, fontsize=8.5, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _stacked(axis: Axes, row: int, parts: dict[str, float]) -> None:
    left = 0.0
    for part, width in parts.items():
        axis.barh(row, width, left=left, height=0.62, color=COLOURS[part], edgecolor=LIGHT["surface"], linewidth=1)
        left += width
    axis.text(left + 0.25, row, f"{left:g}", va="center", weight="bold")


def main() -> None:
    """Draw all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "img"
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams.update(STYLE)
    smoothing(folder / "concept-smoothing.png")
    stream(folder / "concept-stream.png")
    memory(folder / "concept-memory.png")


if __name__ == "__main__":
    main()
