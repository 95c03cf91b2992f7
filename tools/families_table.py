"""Prints the table of families of README.md: builds every published size from its configuration, counts and smooths it.

Run from the repository root on an idle machine: ``python tools/families_table.py [--write] [VARIANT ...]``.
``--write`` puts the table between its two marks in README.md. Each model is built in a process of its own, with weights that
its constructor draws; nothing is downloaded. It takes about five minutes and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- families: python tools/families_table.py --write -->", "<!-- end of families -->"
HEADER = (
    "| family | variant | package | tasks | licence of the weights | parameters, million | smooth, s | extra memory |\n"
    "|---|---|---|---|---|---|---|---|"
)
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Published:
    """Where a variant's published sizes are built, and what its weights may be used for.

    Args:
        builder: Name in tests/model_builders.py.
        licence: Licence of the published weights.
        sizes: The sizes, smallest first.
    """

    builder: str
    licence: str
    sizes: tuple[str, ...]


PUBLISHED = {
    "chronos-2": Published("chronos2", "Apache-2.0", ("small", "base")),
    "chronos-bolt": Published("chronos_bolt", "Apache-2.0", ("8m", "20m", "46m", "200m")),
    "chronos-t5": Published("chronos_t5", "Apache-2.0", ("8m", "20m", "46m", "200m", "710m")),
    "moirai": Published("moirai", "CC-BY-NC-4.0", ("small", "base", "large")),
    "moirai-2": Published("moirai2", "CC-BY-NC-4.0", ("small",)),
    "moirai-moe": Published("moirai_moe", "CC-BY-NC-4.0", ("small", "base")),
    "moment": Published("moment", "MIT", ("small", "base", "large")),
    "sundial": Published("sundial", "Apache-2.0", ("128m",)),
    "timer": Published("timer", "MIT", ("67m",)),
    "timer-84m": Published("timer_hf", "Apache-2.0", ("84m",)),
    "timesfm-2.0": Published("timesfm2_hf", "Apache-2.0", ("500m",)),
    "timesfm-2.5": Published("timesfm25_hf", "Apache-2.0", ("200m",)),
    "timesfm-2.5-google": Published("timesfm", "Apache-2.0", ("200m",)),
    "timesfm-3-google": Published("timesfm3", "TimesFM non-commercial 1.0", ("default",)),
    "ttm": Published("ttm", "Apache-2.0", ("r2",)),
    "units": Published("units", "MIT", ("x32", "x64", "x128")),
}
"""Variant to what is published of it. Licences: the model cards, the repositories, and timesfm's notice on its weights."""


def main(arguments: list[str] | None = None) -> int:
    """Measure the variants, print the table, and write it where asked."""
    import sff_fast

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="only these (default: all that are registered)")
    parser.add_argument("--write", action="store_true", help="put the whole table into README.md")
    parser.add_argument("--measure", nargs=2, metavar=("BUILDER", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    infos = {info.variant: info for info in sff_fast.families().values()}
    chosen = options.variants or sorted(infos, key=lambda variant: (infos[variant].family, variant))
    if options.write and options.variants:
        parser.error("--write writes the whole table: name no variants")
    rows = [HEADER]
    for variant in chosen:
        rows.append(row(infos[variant]))
        print(rows[-1], file=sys.stderr, flush=True)
    table = "\n".join(rows)
    print(table)
    if options.write:
        text = README.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    return 0


def row(info) -> str:
    """One variant's row; time and memory are those of its largest size."""
    published = PUBLISHED[info.variant]
    found = [in_a_process(published.builder, size) for size in published.sizes]
    counts = " / ".join(millions(one["parameters"]) for one in found)
    largest = found[-1]
    package = "none" if info.package is None else info.package
    cells = (
        f"`{info.family}`",
        f"`{info.variant}`",
        package,
        ", ".join(sorted(info.tasks, key=("forecast", "imputation", "anomaly").index)),
        published.licence,
        counts,
        f"{largest['seconds']:.2g}",
        f"{largest['bytes'] / 2**10:.0f} KiB",
    )
    return f"| {' | '.join(cells)} |"


def millions(count: int) -> str:
    """A count in millions with three digits."""
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def in_a_process(builder: str, size: str) -> dict[str, float]:
    """What :func:`measure` finds in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", builder, size]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"{builder} {size}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(builder: str, size: str) -> dict[str, float]:
    """Parameters of a model, the median seconds of smoothing it on one thread, and the bytes by which peak memory grows."""
    import torch
    from model_builders import BUILDERS

    import sff_fast
    from sff_fast.training.runtime import peak_memory, reset_peak_memory

    # Code and heap are warm before anything is measured, as benchmarks/child.py has it.
    sff_fast.smooth_(torch.nn.Linear(300, 300), lambda: torch.nn.Linear(300, 300))
    plan, model = sff_fast.trace(lambda: BUILDERS[builder](size)), BUILDERS[builder](size)
    reset_peak_memory("cpu")
    before = peak_memory("cpu")
    seconds = []
    for seed in range(ROUNDS):
        begin = time.perf_counter()
        sff_fast.smooth_(model, plan, alpha=0.7, seed=seed, threads=1, again=True)
        seconds.append(time.perf_counter() - begin)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": statistics.median(seconds),
        "bytes": peak_memory("cpu") - before,
    }


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    raise SystemExit(main())
