"""How much memory does full fine-tuning with SFF take: the usual way and ours?

Every figure is of a fresh process. Bytes a parameter, weights included:

    (VmHWM - RSS after imports - activations) / parameters
    activations = VmHWM - RSS after imports - weights of a process that makes the same forward and backward passes,
                  frees every gradient at once and has no optimizer

* usual: float32, a second model for SFF, torch's fused AdamW;
* ours: bfloat16 with stochastic rounding, SFF in place, int8 states, gradients released.

``--four-billion`` instead tunes a Chronos-T5 of 4.0 billion parameters for five steps on one fixed batch, and checks the
peak of the whole process (<= 20 GiB) and that the loss falls.

Run from the repository root: ``python benchmarks/bench_memory.py [--cases NAME ...] [--steps 3] [--four-billion [--layers N]]``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from timing import RESULTS, write_rows

CASES = ("chronos-t5-large", "moirai-moe-base")
LIMITS = {"usual": (">=", 16.0), "ours": ("<=", 4.2)}
LIMIT_GIB = 20.0
IMAGE = Path(__file__).resolve().parents[1] / "docs" / "img" / "memory.png"


def child(*arguments: object) -> dict[str, object]:
    """The JSON of one fresh process."""
    script = Path(__file__).with_name("memory_child.py")
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, ways: list[str], steps: int) -> list[dict[str, object]]:
    """The ways of one model."""
    rows = []
    for way in ways:
        sign, bound = LIMITS[way]
        passes, training = child(case, f"{way}-passes", steps), child(case, way, steps)
        activations = passes["peak"] - passes["imports"] - passes["weights"]
        value = (training["peak"] - training["imports"] - activations) / training["parameters"]
        rows.append(
            {
                "case": case,
                "way": way,
                "parameters": training["parameters"],
                "trained": training["trained"],
                "bytes_per_parameter": f"{value:.3f}",
                "must": f"{sign} {bound}",
                "holds": "yes" if (value >= bound if sign == ">=" else value <= bound) else "no",
                "peak_gib": f"{training['peak'] / 2**30:.2f}",
                "imports_gib": f"{training['imports'] / 2**30:.2f}",
                "activations_gib": f"{activations / 2**30:.2f}",
                "step_seconds": training["step_seconds"],
                "first_loss": f"{training['losses'][0]:.4f}",
                "last_loss": f"{training['losses'][-1]:.4f}",
            }
        )
        show(rows[-1])
    return rows


def four_billion(case: str, layers: int | None) -> dict[str, object]:
    """Five steps of ours on one batch."""
    found = child(case, "ours", 5, *([] if layers is None else [layers]))
    losses, peak = found["losses"], found["peak"] / 2**30
    falls = all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
    row = {
        "case": case,
        "way": "ours",
        "parameters": found["parameters"],
        "trained": found["trained"],
        "bytes_per_parameter": f"{found['peak'] / found['parameters']:.3f}",
        "must": f"<= {LIMIT_GIB} GiB, loss falls",
        "holds": "yes" if peak <= LIMIT_GIB and falls else "no",
        "peak_gib": f"{peak:.2f}",
        "imports_gib": f"{found['imports'] / 2**30:.2f}",
        "activations_gib": "",
        "step_seconds": found["step_seconds"],
        "first_loss": f"{losses[0]:.4f}",
        "last_loss": f"{losses[-1]:.4f}",
    }
    show(row)
    print(f"built and smoothed in {found['build_seconds']} s; losses {', '.join(f'{loss:.4f}' for loss in losses)}")
    return row


def show(row: dict[str, object]) -> None:
    """One line a row."""
    print(
        f"{row['case']:<18} {row['way']:<6} {row['parameters'] / 1e6:7.0f} M  {row['bytes_per_parameter']:>7} bytes a parameter"
        f"  must {row['must']}: {row['holds']}  peak {row['peak_gib']} GiB (imports {row['imports_gib']}, activations "
        f"{row['activations_gib'] or 'in it'})  {row['step_seconds']} s a step  loss {row['first_loss']} -> {row['last_loss']}",
        flush=True,
    )


def last_rows() -> list[dict[str, str]]:
    """The newest row of every model and way in results/memory.csv."""
    with (RESULTS / "memory.csv").open(newline="") as file:
        rows = {(row["case"], row["way"]): row for row in csv.DictReader(file)}
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[1] != "usual"))]


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Bars of bytes a parameter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.2, 0.55 * len(rows) + 1.0))
    colours = {"usual": "#c46210", "ours": "#0b6e4f"}
    for place, row in enumerate(rows):
        value = float(row["bytes_per_parameter"])
        axis.barh(place, value, height=0.62, color=colours[row["way"]])
        axis.text(value + 0.15, place, f"{value:.2f}  ({row['peak_gib']} GiB in all)", va="center", fontsize=9, color="#333333")
    labels = [f"{row['case']} ({int(row['parameters']) / 1e6:.0f} M), {row['way']}" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=9)
    axis.set_xlabel("bytes a parameter at the peak, weights included\nwithout activations, but for the 4 billion", fontsize=9)
    axis.margins(x=0.42)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    """Run the cases, print them, append them to benchmarks/results/memory.csv and draw docs/img/memory.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=f"models (default {' '.join(CASES)})")
    parser.add_argument("--ways", nargs="+", default=list(LIMITS), choices=list(LIMITS), help="default usual ours")
    parser.add_argument("--draw", action="store_true", help="only draw the picture of the last rows of results/memory.csv")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (default 3)")
    parser.add_argument("--four-billion", action="store_true", help="only the model of 4 billion parameters: needs 20 GiB")
    parser.add_argument("--layers", type=int, help="with --four-billion: so many layers instead of 34, to try it out")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    parser.add_argument(
        "--mmap-threshold", type=int, help="glibc maps blocks above so many bytes, and gives them back when freed"
    )
    settings = parser.parse_args()
    if settings.mmap_threshold is not None:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(settings.mmap_threshold)
    if settings.draw:
        draw(last_rows(), IMAGE)
        print(f"written to {IMAGE}")
        return
    if settings.four_billion:
        rows = [four_billion("chronos-t5-4b", settings.layers)]
    else:
        rows = [row for case in settings.cases for row in compare(case, settings.ways, settings.steps)]
    if settings.no_csv:
        return
    print(f"written to {write_rows('memory', rows)}")
    draw(last_rows(), IMAGE)
    print(f"written to {IMAGE}")


if __name__ == "__main__":
    main()
