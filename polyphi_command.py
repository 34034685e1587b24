"""The program `polyphi`: `polyphi.cli` imported so that Ctrl-C meanwhile, half a second, is one line, too."""

import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from polyphi.cli import main as run
    except KeyboardInterrupt:
        print("polyphi: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
