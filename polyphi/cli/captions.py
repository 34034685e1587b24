"""`polyphi transcribe --live`: captions on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live as Screen
from rich.text import Text

from polyphi.cli.printable import print_message, printable, write_data

if TYPE_CHECKING:
    from polyphi.transcription.capture import Blocks
    from polyphi.transcription.live import AudioItem, LiveEvent

AHEAD = 60.0
"""Seconds of audio that may wait for their transcripts before a pipe is read on."""


class Captions:
    """Prints the events of a live transcription: each transcript as a line and, on a terminal, partial text below."""

    def __init__(self, console: Console, rate: int) -> None:
        self._console, self._rate = console, rate
        self._screen = Screen(console=console, auto_refresh=False, transient=True)
        self._partial = ""
        self.failed = False

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()

    def show(self, event: "LiveEvent") -> None:
        """Print an event of the live transcription."""
        from polyphi.transcription import live
        from polyphi.transcription.transcript import text_of

        if isinstance(event, live.TranscriptDelta):
            self._partial = event.item.sent
        elif isinstance(event, live.Completed):
            self._partial = ""
            if text := text_of(event.transcript):
                self._print(text)
            for warning in event.transcript.warnings:
                self._report(event.item, warning)
        elif isinstance(event, live.Failed):
            self._partial, self.failed = "", True
            self._report(event.item, f"not transcribed: {event.error}")
        if self._screen.is_started:
            self._screen.update(Text(printable(self._partial), style="dim"), refresh=True)

    def _print(self, text: str) -> None:
        if self._screen.is_started:  # above the partial text
            line = Text(printable(text))
            self._console.print(line, soft_wrap=True)
        else:
            write_data(self._console, f"{text}\n")

    def _report(self, item: "AudioItem", text: str) -> None:
        seconds = item.start / self._rate
        print_message(f"the part from {seconds:.1f} s: {text}")


@contextmanager
def audio(source: str | None, raw_rate: int) -> "Iterator[tuple[int, Blocks]]":
    """(rate in Hz, blocks of samples) of standard input ("-") or of the microphone (None)."""
    from polyphi.transcription.capture import microphone, pipe

    if source is None:
        with microphone() as opened:
            yield opened
    else:
        yield pipe(sys.stdin.buffer, raw_rate)


def transcribe_live(
    engine: Any,
    source: str | None,
    *,
    raw_rate: int,
    to: str | None,
    adapter: str | None,
    console: Console,
) -> bool:
    """Print captions until the audio ends or Ctrl-C is pressed, then the rest. Returns whether all audio was
    transcribed."""
    from dataclasses import replace

    from polyphi.transcription.live import Live
    from polyphi.transcription.longform import transcription

    task = replace(transcription(to), adapter=adapter)
    with audio(source, raw_rate) as (rate, blocks), Captions(console, rate) as captions:
        if sys.stderr.isatty():
            print_message("listening; Ctrl-C ends")
        with Live(engine, task, rate=rate, emit=captions.show) as live:
            try:
                for samples in blocks:
                    live.append(samples)
                    if source is not None:
                        live.wait(AHEAD)
            except KeyboardInterrupt:
                pass
            live.finish()
    return not captions.failed
