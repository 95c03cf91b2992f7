"""Where the results of a command go, and how it tells of them: what finetune, compare, sweep, landscape and demo share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from sff_fast.cli.progress import make_progress


@dataclass(frozen=True)
class Job:
    """``--out`` and what may become of a run in it, ``--threads``, ``--json``, ``--quiet``."""

    out: str | None
    resume: bool
    overwrite: bool
    threads: int | None
    as_json: bool
    quiet: bool

    def begin(self, lead: Callable[[Callable[[], Any]], Any] = lambda check: check()) -> None:
        """Refuse what cannot work before anything is loaded, and set the threads.

        Args:
            lead: Calls its argument in one process of the job, and raises in all of them what it raises.

        Raises:
            click.UsageError: ``--resume`` or ``--overwrite`` was given without ``--out``.
            OutputError: ``--out`` cannot be used.
            MissingPackageError: A package of the report is not installed.
        """
        if self.out is None and (self.resume or self.overwrite):
            raise click.UsageError("--resume and --overwrite need --out")

        from sff_fast import report
        from sff_fast.files import check_output_directory

        if self.out is not None:
            report.check_packages()
            lead(lambda: check_output_directory(self.out, overwrite=self.overwrite, resume=self.resume))
        use_threads(self.threads)

    def settings(self, unit: str = "windows") -> dict[str, Any]:
        """What the library takes of these: ``out``, ``resume``, ``overwrite``, ``progress``.

        Args:
            unit: What progress counts.
        """
        progress = make_progress(self.quiet, unit=unit)
        return {"out": self.out, "resume": self.resume, "overwrite": self.overwrite, "progress": progress}


def use_threads(threads: int | None) -> None:
    """Set torch's threads within an operation, where a number was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
