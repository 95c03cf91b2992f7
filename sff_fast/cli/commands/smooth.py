"""``sff-fast smooth``."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sff_fast.cli.options import json_option, quiet_option
from sff_fast.cli.progress import make_progress
from sff_fast.cli.types import MAX_SEED, Alpha, Integer

if TYPE_CHECKING:
    from sff_fast.plan import InitPlan

PIPE = "-"


@click.command(short_help="Smooth a checkpoint on disk, of any size.")
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST", required=False)
@click.option("--plan", "plan_path", metavar="FILE", help="An init plan, as `sff-fast plan --save` writes it.")
@click.option("--family", metavar="NAME", help="Instead of --plan: the family, which loads SRC once to see what it is.")
@click.option("--factory", metavar="MODULE:CALLABLE", help="Instead of --plan: what builds the model; it is run.")
@click.option("--alpha", type=Alpha(), default="0.7", metavar="X", help="Share kept, 0 to 1; or one a pattern: 'head.*=1,*=0.7'.")
@click.option("--seed", type=Integer(0, MAX_SEED), metavar="N", default=0, help="Seed of the random draw.")
@click.option("--rounding", type=click.Choice(("nearest", "stochastic")), default="nearest", help="For bf16 and fp16.")
@click.option("--again", is_flag=True, help="Smooth a checkpoint that has been smoothed before.")
@click.option("--threads", type=Integer(1, 4096), metavar="N", show_default="torch's choice", help="CPU threads.")
@click.option("--prefix", metavar="TEXT", default="", help="What the plan's names begin with before the files' names.")
@click.option("--subset", is_flag=True, help="SRC may lack parameters that the plan has.")
@click.option("--in-place", is_flag=True, help="Overwrite SRC; after a crash the same command finishes the work.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it is there.")
@click.option("--no-hashes", is_flag=True, help="Leave the SHA-256 of the files out of the record.")
@json_option
@quiet_option
def smooth(
    src: str,
    dst: str | None,
    plan_path: str | None,
    family: str | None,
    factory: str | None,
    no_hashes: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Smooth the weights of SRC into DST: safetensors in, the same layout out.

    SRC is a safetensors file, or a Hugging Face folder with one file or an index of several. With --plan or --factory the
    weights are never loaded as a whole: memory does not depend on the checkpoint's size.

    SRC and DST may be - for standard input and output. Both pass through files in TMPDIR; the first byte goes out when the
    result is whole.
    """
    if sum(given is not None for given in (plan_path, family, factory)) != 1:
        raise click.UsageError("give one of --plan, --family and --factory")
    if options["in_place"] == (dst is not None):
        raise click.UsageError("give DST, or --in-place without it")
    if PIPE in (src, dst):
        _check_pipes(src, dst, family, options["in_place"], as_json)
    from sff_fast.checkpoints import pipe, smooth_checkpoint

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sff_fast-")) if PIPE in (src, dst) else ""
        source = Path(folder) / "standard-input.safetensors" if src == PIPE else src
        target = Path(folder) / "standard-output.safetensors" if dst == PIPE else dst
        plan = _plan(src, plan_path, family, factory)
        if src == PIPE:
            pipe.spool(sys.stdin.buffer, source)
        report = smooth_checkpoint(
            source,
            target,
            plan,
            hashes=not no_hashes,
            threads=threads,
            progress=make_progress(quiet, unit="MB", scale=1_000_000),
            **options,
        )
        if dst == PIPE:
            pipe.pour(target, sys.stdout.buffer)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
        return
    smoothed = report.record["smoothing"][-1]
    click.echo(
        f"{'standard output' if dst == PIPE else report.target}: {smoothed['tensors']} tensors, "
        f"{smoothed['elements']:,} elements smoothed with "
        f"seed {smoothed['seed']}, {report.bytes / 1e9:.2f} GB in {report.seconds:.1f} s",
        err=dst == PIPE,
    )
    if report.left_out:
        click.echo(f"not copied, since they hold the weights in another form: {', '.join(report.left_out)}")


def _check_pipes(src: str, dst: str | None, family: str | None, in_place: bool, as_json: bool) -> None:
    """Refuse what a pipe cannot do.

    Raises:
        click.UsageError: Naming it.
    """
    if in_place:
        raise click.UsageError("--in-place needs a file or folder, not standard input (-)")
    if src == PIPE and family is not None:
        raise click.UsageError("--family loads SRC, which standard input (-) does not allow: give --plan or --factory")
    if dst == PIPE and Path(src).is_dir():
        raise click.UsageError(f"a folder cannot go to standard output (-): give one file of {src!r}, or a folder as DST")
    if dst == PIPE and as_json:
        raise click.UsageError("--json and the weights cannot both go to standard output: leave one out")
    if src == PIPE and sys.stdin.isatty():
        raise click.UsageError("standard input (-) is a terminal: pipe a safetensors file in")
    if dst == PIPE and sys.stdout.isatty():
        raise click.UsageError("standard output (-) is a terminal: pipe it on, or give a file")


def _plan(src: str, path: str | None, family: str | None, factory: str | None) -> InitPlan:
    from sff_fast.plan import InitPlan

    if path is not None:
        return InitPlan.load(path)
    if factory is not None:
        from sff_fast.cli.commands.plan import import_callable, users_code
        from sff_fast.tracing import trace

        build = import_callable(factory)
        with users_code(f"--factory {factory}"):
            return trace(build)
    from sff_fast import adapters

    return adapters.load(family, src).plan()
