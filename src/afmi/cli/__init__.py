"""The command line, ``afmi``: explain, explain-dataset, compare, evaluate, report, audit,
reproduce, train, export, app, demo, models, methods, metrics, doctor.

Nothing here imports PyTorch before a command needs it, so help answers at once.

Exit codes: 0 all went well; 1 some pictures could not be explained; 2 the command or its options
cannot be used; 130 stopped by Ctrl-C, and what was finished is kept.
"""

from __future__ import annotations

import importlib.metadata

import click

import afmi
from afmi.cli.app import app
from afmi.cli.audit import audit
from afmi.cli.compare import compare
from afmi.cli.demo import demo
from afmi.cli.doctor import doctor
from afmi.cli.evaluate import evaluate
from afmi.cli.explain import explain
from afmi.cli.explain_dataset import explain_dataset
from afmi.cli.export import export
from afmi.cli.group import DEBUG, AfmiGroup
from afmi.cli.methods import methods
from afmi.cli.metrics import metrics
from afmi.cli.models import models
from afmi.cli.report import report
from afmi.cli.reproduce import reproduce
from afmi.cli.train import train

__all__ = ["cli", "main"]


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"afmi {afmi.__version__}, torch {importlib.metadata.version('torch')}")
        ctx.exit()


@click.group(
    "afmi",
    cls=AfmiGroup,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
    epilog="`afmi COMMAND --help` tells more, with examples.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the versions of afmi and PyTorch, and exit.",
)
@click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Explain image networks: which parts of a picture made a network say what it said.

    \b
    Examples:
      afmi demo                                   a tour on real photographs, offline
      afmi explain dog.jpg                        why the network says "malamute"
      afmi explain dog.jpg --model resnet50 --target collie
      afmi explain photos/ --json > records.jsonl
      afmi explain-dataset photos/ --out tables   all of them, into tables that resume
      afmi app                                    the same on a page in the browser
      afmi compare dog.jpg                        several methods side by side
      afmi evaluate --data photographs/           which method deserves belief on your data
      afmi report afmi-results                    the tables and curves of an evaluation
      afmi audit --data photographs/              which classes have two reasons
      afmi models vgg                             the networks called vgg…
    """
    if debug:
        ctx.meta[DEBUG] = True
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    explain,
    explain_dataset,
    compare,
    evaluate,
    report,
    audit,
    reproduce,
    train,
    export,
    app,
    demo,
    models,
    methods,
    metrics,
    doctor,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit."""
    cli.main(prog_name="afmi")
