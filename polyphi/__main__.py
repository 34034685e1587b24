"""`python -m polyphi`, also under torchrun."""

from polyphi.cli import main

if __name__ == "__main__":
    main()
