"""`python -m polyphi.cli`."""

from polyphi.cli import main

main()
