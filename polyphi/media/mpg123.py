"""Messages that libmpg123, libsndfile's MP3 decoder, prints to standard error for a damaged file.

Its errors reach us as exceptions or missing samples, too. The library has a switch for the lines, which libsndfile
doesn't set.
"""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = re.compile(rb"\[[^\]]*mpg123|Note: |Warning: |\s*$")
"""The beginnings of libmpg123's lines: a source file with a line, "Note:" and "Warning:"; and the blank ones around
them."""
_STDERR = 2


@contextmanager
def without_messages() -> Iterator[None]:
    """Leave out what libmpg123 prints meanwhile, in the main thread, where the command line decodes. Lines of others
    wait for the end and are printed then. The file descriptor is the process's, and the threads of a server decode side
    by side, so that theirs is left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with tempfile.TemporaryFile() as file:
        _flush()
        try:
            original = os.dup(_STDERR)
        except OSError:  # a process without standard error
            yield
            return
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            _flush()
            os.dup2(original, _STDERR)
            os.close(original)
            file.seek(0)
            if text := _without_noise(file.read()):
                os.write(_STDERR, text)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def _without_noise(text: bytes) -> bytes:
    return b"".join(line for line in text.splitlines(keepends=True) if not _NOISE.match(line))
