"""``sff-fast bench``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from sff_fast.cli.types import Integer

GROUPS = ("flat", "avx2", "stochastic", "alignment", "many", "busy", "warm", "mapped", "cold", "memory")


@click.command(short_help="Speed of smoothing against its peers and the memory's limit.")
@click.option("--elements", type=Integer(1_000_000), metavar="N", default=100_000_000, help="Elements of the flat cases.")
@click.option("--runs", type=Integer(2), metavar="N", default=5, help="Counted rounds; the medians are shown.")
@click.option("--threads", type=Integer(1, 4096), metavar="N", default=None, help="CPU threads; default: 1, then 2.")
@click.option("--only", type=click.Choice(GROUPS), multiple=True, help="A group of cases; may be given several times.")
def bench(elements: int, runs: int, threads: int | None, only: tuple[str, ...]) -> int:
    """Measure smoothing on this machine: benchmarks/bench_smooth.py of the repository that this package runs from.

    Prints every figure with its limit, appends it to benchmarks/results/smooth.csv and draws docs/img/smooth-speed.png
    and makes README's tables from the latest figures there. About five minutes on two idle cores.
    """
    script = find_script()
    command = [sys.executable, str(script), "--elements", str(elements), "--runs", str(runs)]
    command += ["--threads", str(threads)] if threads else []
    command += ["--only", *only] if only else []
    path = os.pathsep.join([str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}).returncode


def find_script() -> Path:
    """The benchmark beside the package.

    Raises:
        ArgumentError: The package was installed without the repository around it.
    """
    import sff_fast
    from sff_fast.errors import ArgumentError

    root = Path(sff_fast.__file__).resolve().parents[1]
    script = root / "benchmarks" / "bench_smooth.py"
    if not script.is_file():
        raise ArgumentError(
            f"bench: expected the benchmarks beside the package, in {root / 'benchmarks'}, got an installation without them: "
            f"run `make bench` in a clone of the repository, or install that with `pip install -e .`"
        )
    return script
