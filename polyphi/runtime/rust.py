"""Panics of libraries in Rust. Their exception, pyo3's PanicException, is no `Exception`, so that handlers of errors
miss it.

>>> with panics_are_errors("model.safetensors is damaged"):
...     tensor = file.get_tensor("a")
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_are_errors(message: str) -> Iterator[None]:
    """Raise ValueError with the message and the panic's text where a call inside panics."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(f"{message} ({error!s:.200})") from None
