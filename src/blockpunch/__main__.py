"""``python -m blockpunch``: the command line."""

from blockpunch.cli import main

main()
