"""What a command prints while and after it loads a model."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress

from polyphi.cli.options import error_console
from polyphi.cli.printable import PrintableFormatter, print_message


def show_placement(phi: Any) -> None:
    """Print a model's device and memory use, if standard error is a terminal."""
    if sys.stderr.isatty():
        print_message(str(phi.memory))


@contextmanager
def load_progress() -> Iterator[Callable[[str, float | None], None]]:
    """Show on standard error what the download and the quantization of a hub id do; yields the `progress` of
    `polyphi.load`. huggingface_hub shows bars of its downloads."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("polyphi: %(message)s"))
    loggers = [logging.getLogger(f"polyphi.{name}") for name in ("checkpoints", "hub")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    bars = Progress(console=error_console, transient=True, disable=not sys.stderr.isatty())
    task = bars.add_task("quantizing", total=1.0)

    def update(stage: str, share: float | None) -> None:
        if stage == "quantization":  # a bar that began earlier would erase those of downloads
            bars.start()
            bars.update(task, completed=share or 0.0)
        elif stage == "tokenizer":
            bars.stop()

    try:
        yield update
    finally:
        bars.stop()
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
