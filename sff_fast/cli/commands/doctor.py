"""``sff-fast doctor``."""

from __future__ import annotations

import json

import click

from sff_fast.cli.options import json_option


@click.command(short_help="What this machine and installation offer.")
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine and installation offer, and what is missing."""
    from sff_fast import doctor as library

    report = library.examine()
    click.echo(json.dumps(report, indent=2) if as_json else library.to_text(report))
