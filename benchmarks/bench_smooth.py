"""How fast is smoothing in place, against the strongest peers and against the memory itself?

Contenders, interleaved in one process, medians of paired rounds:

* limit: ``x.mul_(c)``, the in-place scale: the bytes that must be moved (8 an fp32 element, 4 a bf16 one), nothing else;
* ours: :func:`sff_fast.smooth_`, from argument checks to the report;
* torch: torch's own generator into one reused scratch tensor, then ``lerp_``;
* second model: what the reference does, building a random model and interpolating parameter by parameter.

In the same run the kernels are checked against the reference backend. Results are appended to
``benchmarks/results/smooth.csv``; ``docs/img/smooth-speed.png`` is drawn and README's tables are made from the latest figure of
every case there, so that the groups may be measured one at a time. About five minutes on two idle cores.

Run from the repository root: ``python benchmarks/bench_smooth.py``, ``make bench`` or ``sff-fast bench``.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from busy import busy
from flat import alignment, flat, many, runs_here
from mapped import mapped
from models import FACTORIES
from picture import draw
from speed_doc import updated
from timing import latest_rows, show, write_rows
from whole import cold, memory, warm

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ROOT = Path(__file__).resolve().parents[1]
PICTURE, README = ROOT / "docs" / "img" / "smooth-speed.png", ROOT / "README.md"


def cases(elements: int, runs: int, threads: int) -> Iterator[tuple[str, Callable[[], list]]]:
    """Group and function of every case for a number of threads."""
    for label in ("constant", "uniform", "normal", "trunc_normal"):
        yield "flat", lambda label=label: flat(label, FP32, elements, runs, threads)
    for label in ("uniform", "normal"):
        yield "flat", lambda label=label: flat(label, BF16, elements, runs, threads)
    yield "flat", lambda: flat("normal", FP16, elements, runs, threads)
    if runs_here("avx2"):
        for label in ("uniform", "normal"):
            yield "avx2", lambda label=label: flat(label, FP32, elements, runs, threads, isa="avx2")
    for dtype in (BF16, FP16):
        yield "stochastic", lambda dtype=dtype: flat("uniform", dtype, elements, runs, threads, rounding="stochastic")
    for label in ("uniform", "normal"):
        yield "alignment", lambda label=label: alignment(label, elements, runs, threads)
    yield "many", lambda: many(elements, runs, threads)
    yield "busy", lambda: busy(elements, runs, threads)
    for name in FACTORIES:
        yield "warm", lambda name=name: warm(name, runs, threads)
    yield "mapped", lambda: mapped("Timer-67M", max(3, runs // 2), threads)
    yield "cold", lambda: cold("Timer-67M", runs, threads)
    yield "memory", lambda: memory("Timer-67M", threads)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print them, append them to the CSV file, draw the picture and make README's tables from that."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--elements", type=float, default=1e8, help="elements of the flat cases (default 1e8)")
    parser.add_argument("--runs", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default 1 2)")
    groups = list(dict.fromkeys(group for group, _ in cases(1, 1, 1)))
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, help="groups of cases (default all)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to draw (default docs/img/smooth-speed.png)")
    parser.add_argument("--page", type=Path, default=README, help="the page whose tables are made anew (default README.md)")
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for group, case in cases(int(options.elements), options.runs, threads):
            if group in options.only:
                found = case()
                gc.collect()
                for r in found:
                    show(r)
                rows += found
                path = write_rows("smooth", found)  # at once: a run that is stopped leaves what it has measured
    print(f"written to {path}")
    missed = [r for r in rows if r["holds"] == "no"]
    print(f"{sum(r['holds'] == 'yes' for r in rows)} of the limits hold, {len(missed)} do not")
    latest = latest_rows("smooth")
    draw(latest, options.picture)
    options.page.write_text(updated(options.page.read_text(), latest))
    print(f"drawn to {options.picture}, tables of {options.page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
