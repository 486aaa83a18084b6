"""The command line: verbs, tables and messages. The only part of the package that prints."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the program ``blockpunch``."""
    try:
        import rich  # noqa: F401 - looked for only
        import typer  # noqa: F401
    except ImportError as error:
        sys.exit(f"blockpunch: the command line needs the package '{error.name}', which is not installed\n"
                 "  -> pip install 'blockpunch[cli]'")
    from blockpunch.cli.app import app

    app(prog_name="blockpunch")
