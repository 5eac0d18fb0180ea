"""The ``farwalk`` command: its verbs and nothing else."""

from importlib.metadata import version
from typing import Annotated

import typer

from apps.cli.boundary import guarded
from apps.cli.check import check
from apps.cli.demo import demo
from apps.cli.export import export
from apps.cli.failures import failures
from apps.cli.init import init
from apps.cli.jobs import jobs
from apps.cli.relabel import relabel
from apps.cli.run import run
from apps.cli.schema import schema
from apps.cli.simulate import simulate
from apps.cli.status import status
from apps.cli.stop import stop
from apps.cli.submit import submit

application = typer.Typer(
    name="farwalk",
    help="Build a machine-learned interatomic potential by active learning, from one campaign.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farwalk {version('farwalk')}")
        raise typer.Exit


@application.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


for verb in (init, check, simulate, run, submit, status, failures, relabel, jobs, stop, export, demo, schema):
    application.command()(guarded(verb))


def main() -> None:
    """Entry point of the ``farwalk`` command."""
    application()
