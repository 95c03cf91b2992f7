"""What benchmarks/bench_scaling.py measured as tables, models fitted to it, and the models at 10^11 parameters on 1,000 ranks.

``python benchmarks/scaling.py`` prints the tables of ``docs/scaling.md`` from ``benchmarks/results/scaling.csv``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence

import numpy as np
import timing

FIELDS = (
    *("part", "ranks", "tensors", "elements", "micro", "windows", "ms", "launches", "calls", "received", "bytes"),
    *("batch_us", "errors_us"),
)
PARAMETERS, TENSORS, RANKS = 10**11, 1000, 1000
"""The job of the extrapolation."""
COLUMNS = 256
"""Second axis of every tensor of the benchmark."""
H100_BYTES = 3.35e12
"""Bytes a second, by the data sheet of the H100 SXM."""
LINK_BYTES = 50e9
"""Bytes a second and direction of a GPU's network adapter, 400 Gb/s, as in a DGX H100's data sheet."""

Row = Mapping[str, object]


def row(part: str, **values: float) -> dict[str, object]:
    """A CSV row; what was not measured is empty."""
    return {"part": part} | {name: _text(values.get(name, "")) for name in FIELDS[1:]}


def _text(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_rows() -> list[Row]:
    """The latest row of every size in ``benchmarks/results/scaling.csv``."""
    with (timing.RESULTS / "scaling.csv").open(newline="") as file:
        latest = {tuple(r[key] for key in ("part", "ranks", "tensors", "elements", "micro")): r for r in csv.DictReader(file)}
    return list(latest.values())


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [r for r in rows if r["part"] == part]


def fit(rows: Sequence[Row]) -> tuple[np.ndarray, float]:
    """Base, seconds a tensor and seconds a local element of smoothing; and the model's largest relative error."""
    found = _of(rows, "smoothing")
    x = np.array([(1.0, float(r["tensors"]), float(r["elements"])) for r in found])
    y = np.array([float(r["ms"]) / 1e3 for r in found])
    coefficients, *_ = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)
    return coefficients, float(np.abs(x @ coefficients / y - 1).max())


def received(kind: str, size: float, ranks: int, micro: int) -> float:
    """Bytes that a rank receives in a step, by the algorithm: of ``size`` bytes of parameters.

    DDP reduces and gathers the gradients once; FSDP2 gathers the parameters for every forward and backward pass and
    reduces the gradients to the shards once.
    """
    return (2.0 if kind == "ddp" else 2.0 * micro + 1.0) * size * (ranks - 1) / ranks


def padding(rows: int, ranks: int) -> float:
    """By what FSDP2 fills up a tensor so that its first axis divides among the ranks, as a factor."""
    return math.ceil(rows / ranks) * ranks / rows


def _model(step: Row) -> float:
    """What a measured step should have received, in sizes of its parameters."""
    kind, ranks = str(step["part"]).split()[0], int(step["ranks"])
    rows = int(step["elements"]) // int(step["tensors"]) // COLUMNS
    return received(kind, padding(rows, ranks) if kind == "fsdp" else 1.0, ranks, int(step["micro"]))


def tables(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Title to the lines of a table in Markdown, as docs/scaling.md holds them."""
    (base, tensor, element), worst = fit(rows)
    smoothing, steps, data = _of(rows, "smoothing"), [r for r in rows if str(r["part"]).endswith(" step")], _of(rows, "data")
    times = {(int(r["ranks"]), int(r["tensors"]), round(float(r["elements"]), -5)): float(r["ms"]) for r in smoothing}
    sizes = sorted({key[1:] for key in times})
    ranks = sorted({key[0] for key in times})
    counts = {(int(r["launches"]), int(r["calls"])) for r in smoothing}
    (launches, calls) = counts.pop()
    assert not counts, "the number of launches depends on a size"
    local = PARAMETERS / RANKS
    seconds = base + tensor * TENSORS + element * local
    return {
        "Smoothing, measured": [
            "| tensors | local elements | " + " | ".join(f"{w:,} ranks" for w in ranks) + " |",
            "|---|---|" + "---|" * len(ranks),
            *(f"| {t} | {n:,.0f} | " + " | ".join(f"{times[w, t, n]:.3g} ms" for w in ranks) + " |" for t, n in sizes),
        ],
        "Smoothing, model": [
            "| | |",
            "|---|---|",
            f"| base | {1e3 * base:.2g} ms |",
            f"| a tensor | {1e6 * tensor:.0f} us |",
            f"| a local element | {1e9 * element:.2f} ns |",
            f"| largest relative error of the model | {worst:.0%} |",
            f"| kernel launches a device | {launches} |",
            f"| collectives | {calls} |",
        ],
        "Smoothing, 10^11 parameters in 1,000 tensors on 1,000 ranks": [
            "| | a rank | the job |",
            "|---|---|---|",
            f"| elements | {local:.3g} | {PARAMETERS:.3g} |",
            f"| memory traffic, fp32 / bf16 | {8 * local / 1e9:.1f} / {4 * local / 1e9:.1f} GB | "
            f"{8 * PARAMETERS / 1e9:.0f} / {4 * PARAMETERS / 1e9:.0f} GB |",
            f"| at 3.35 TB/s, fp32 / bf16 | {8e3 * local / H100_BYTES:.2f} / {4e3 * local / H100_BYTES:.2f} ms | "
            "the same: ranks do not wait for each other |",
            f"| kernel launches | {launches} | {launches * RANKS:,} |",
            f"| communication | {calls} bytes | {calls} bytes |",
            f"| plan and table on the host | {1e3 * tensor * TENSORS:.0f} ms | the same |",
            f"| all of it on the CPU, one thread | {1e3 * seconds:.0f} ms | the same |",
        ],
        "A step, received by a rank": [
            "| | ranks | micro-batches | measured | model |",
            "|---|---|---|---|---|",
            *(
                f"| {str(r['part']).split()[0].upper()} | {r['ranks']} | {r['micro']} | "
                f"{int(r['received']) / (4 * int(r['elements'])):.3f} P | "
                f"{_model(r):.3f} P |"
                for r in steps
            ),
        ],
        "A step, 10^11 parameters on 1,000 ranks": [
            "| | DDP | FSDP2 |",
            "|---|---|---|",
            f"| parameters, gradients and Adam's states of a rank, fp32 | {16 * PARAMETERS / 1e9:,.0f} GB: no GPU has it | "
            f"{16 * local / 1e9:.1f} GB, and the largest block |",
            *(
                f"| received by a rank, {m} micro-batch{'es' if m > 1 else ''} | "
                + " | ".join(
                    f"{received(kind, 4.0 * PARAMETERS, RANKS, m) / 1e9:,.0f} GB, "
                    f"{received(kind, 4.0 * PARAMETERS, RANKS, m) / LINK_BYTES:.0f} s at 50 GB/s"
                    for kind in ("ddp", "fsdp")
                )
                + " |"
                for m in (1, 4)
            ),
            f"| save, written by a rank | {12 * local / 1e9:.1f} GB | {12 * local / 1e9:.1f} GB |",
        ],
        "Data, in every rank": [
            "| values in the table | windows | memory beside the table | order of an epoch | a window of a batch | its errors |",
            "|---|---|---|---|---|---|",
            *(
                f"| {int(r['elements']):,} | {int(r['windows']):,} | {int(r['bytes']) / int(r['elements']):.1f} bytes a value | "
                f"{float(r['ms']):.3g} ms | {float(r['batch_us']):.0f} us | {float(r['errors_us']):.0f} us |"
                for r in data
            ),
        ],
    }


if __name__ == "__main__":
    for title, lines in tables(read_rows()).items():
        print(f"{title}\n\n" + "\n".join(lines) + "\n")
