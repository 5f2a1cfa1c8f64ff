"""`python -m flows.cli` is `igpt`."""

from flows.cli.main import main

main()
