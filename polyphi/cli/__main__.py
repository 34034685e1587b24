"""`python -m polyphi.cli`."""

from polyphi.cli import main

if __name__ == "__main__":  # a process that `doctor` starts imports this file under another name
    main()
