"""The ``sff-fast`` program: its commands, and what becomes of errors and signals."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from sff_fast.cli.commands.bench import bench
from sff_fast.cli.commands.compare import compare
from sff_fast.cli.commands.demo import demo
from sff_fast.cli.commands.doctor import doctor
from sff_fast.cli.commands.evaluate import evaluate
from sff_fast.cli.commands.finetune import finetune
from sff_fast.cli.commands.forecast import forecast
from sff_fast.cli.commands.landscape import landscape
from sff_fast.cli.commands.plan import plan
from sff_fast.cli.commands.smooth import smooth
from sff_fast.cli.commands.sweep import sweep
from sff_fast.cli.exit_codes import DONE, INTERRUPTED, TERMINATED, USER_ERROR
from sff_fast.errors import SffFastError
from sff_fast.exhaustion import told
from sff_fast.version import __version__

IN_JOBS = ("finetune",)
"""Commands that several processes, started by torchrun, do together."""

_LITTLE_MEMORY = "free some, or take a machine with more; `sff-fast plan --memory` predicts what a run needs"
"""What to do where the memory was not enough for something that has no advice of its own."""


class OrderedGroup(click.Group):
    """Lists its commands in the order in which a user meets them, and leaves ctrl-C to :func:`run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, as registered."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself would answer ctrl-C with an empty line and an exception of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise SystemExit(INTERRUPTED) from error


@click.group(
    cls=OrderedGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, prog_name="sff-fast", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Smoothed full fine-tuning of time-series models.

    Before fine-tuning, every weight becomes alpha * pre-trained + (1 - alpha) * random draw of its own constructor.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    elif ctx.invoked_subcommand not in IN_JOBS and _rank() is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError(
            f"{ctx.invoked_subcommand} runs in one process: start it without torchrun, which is for {', '.join(IN_JOBS)}", ctx
        )


for _command in (demo, doctor, plan, smooth, finetune, compare, sweep, evaluate, forecast, landscape, bench):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and turn what happens into an exit code; see :func:`sff_fast.cli.main`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with _plain_warnings(), _sigterm_ends():
        try:
            with told(_LITTLE_MEMORY):
                outcome = cli.main(args=given, prog_name="sff-fast", standalone_mode=False, obj=given)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "sff-fast"
            _say(f"error: {error.format_message()}")
            click.echo(f"Try '{where} --help'.", err=True)
            return USER_ERROR
        except click.ClickException as error:
            _say(f"error: {error.format_message()}")
            return USER_ERROR
        except SffFastError as error:
            _say(f"error: {error}")
            return USER_ERROR
        except SystemExit as error:
            if error.code not in (INTERRUPTED, TERMINATED):
                raise
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal has written ^C on this line
            _say(_stopped("interrupted" if error.code == INTERRUPTED else "terminated", given))
            return error.code
    return outcome if isinstance(outcome, int) else DONE


def _rank() -> int | None:
    """Which process of a job this is, where torchrun has started it."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdigit() else None


def _say(text: str) -> None:
    """One line on stderr, whatever the text holds: names from files must not move the reader's cursor."""
    line = " ".join(text.split())
    line = f"rank {_rank()}: {line}" if _rank() else line
    line = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in line)
    click.echo(f"sff-fast: {line}", err=True)


def _stopped(how: str, arguments: Sequence[str]) -> str:
    if "--out" in arguments or any(argument.startswith("--out=") for argument in arguments):
        return f"{how}; the same command with --resume goes on from the last save"
    return how


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings and the library's log as one line each on stderr, and let odd characters pass the terminal."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"warning: {message}")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _say(f"{record.levelname.lower()}: {record.getMessage()}")

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("sff_fast")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that temporary files are removed, and ends with exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
