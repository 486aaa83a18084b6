"""The program: its verbs and global options."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from blockpunch.cli import building, mapping, measuring, optimizing, pruning
from blockpunch.cli.guard import guarded

app = typer.Typer(name="blockpunch", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
                  help="Prune each layer of a trained CNN the way that suits it best, and compile what is left.")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done.")] = False,
) -> None:
    """Options that go before the verb."""
    if debug:
        os.environ["BLOCKPUNCH_DEBUG"] = "1"
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


for verb in (measuring.doctor, building.inspect, mapping.profile_, mapping.map_, pruning.prune, building.compile_,
             building.run, measuring.bench, optimizing.optimize, optimizing.report, building.extract):
    app.command(verb.__name__.rstrip("_"))(guarded(verb))
