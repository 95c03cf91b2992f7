"""The picture of benchmarks/bench_smooth.py: nanoseconds an element of every path, against the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = {"limit": "#9aa5b1", "ours": "#0b6e4f", "torch": "#c46210", "torch loop": "#c46210", "second model": "#7b2d26"}
LABELS = {
    "limit": "in-place scale (the memory's limit)",
    "ours": "sff_fast",
    "torch": "torch generator + lerp_ (whole models: a loop over the plan)",
    "second model": "building a second model",
}
CASES = (
    ("constant float32", "widest", "constant, fp32"),
    ("uniform float32", "widest", "uniform, fp32"),
    ("normal float32", "widest", "normal, fp32"),
    ("trunc_normal float32", "widest", "truncated normal, fp32"),
    ("uniform bfloat16", "widest", "uniform, bf16"),
    ("normal bfloat16", "widest", "normal, bf16"),
    ("uniform float32", "avx2", "uniform, fp32, AVX2"),
    ("normal float32", "avx2", "normal, fp32, AVX2"),
    ("Timer-67M", "widest", "Timer-67M, whole"),
    ("Chronos-T5-base", "widest", "Chronos-T5-base, whole"),
)


def bars(rows: Sequence[Mapping[str, object]], case: str, isa: str, threads: int) -> dict[str, float]:
    """Contender to nanoseconds an element of one case."""
    found: dict[str, float] = {}
    for r in rows:
        if (r["case"], r["isa"], int(r["threads"])) == (case, isa, threads):
            if r["peer"] == "limit" or "ours" not in found:
                found["ours"] = float(r["ours_ns"])  # as measured beside the limit, where that was
            found[str(r["peer"])] = float(r["peer_ns"])
    return found


def draw(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """One panel a number of threads, one group of bars a case, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    threads = sorted({int(r["threads"]) for r in rows})
    shown = [c for c in CASES if bars(rows, c[0], c[1], threads[0])]
    figure, axes = pyplot.subplots(
        1, len(threads), figsize=(6.2 * len(threads), 0.72 * len(shown) + 1.3), sharex=True, sharey=True
    )
    for axis, count in zip([axes] if len(threads) == 1 else axes, threads):
        for place, (case, isa, _) in enumerate(shown):
            values = bars(rows, case, isa, count)
            names = [name for name in COLOURS if name in values]
            for i, name in enumerate(names):
                y = place + (i - (len(names) - 1) / 2) * 0.21
                axis.barh(y, values[name], height=0.19, color=COLOURS[name])
                axis.text(values[name] * 1.06, y, f"{values[name]:.3g}", va="center", fontsize=7.5, color="#333333")
        axis.set_title(f"{count} thread{'s' if count > 1 else ''}", fontsize=11, loc="left")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_xlabel("ns an element (less is better)", fontsize=9)
        axis.set_yticks(range(len(shown)), [label for _, _, label in shown], fontsize=9)
        axis.tick_params(length=0)
        axis.margins(x=0.14)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    axis.invert_yaxis()
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in LABELS]
    figure.legend(handles, LABELS.values(), loc="upper center", ncols=len(LABELS), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
