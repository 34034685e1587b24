"""Ports for processes that open them some seconds later."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at. It is below those that Linux gives to outgoing connections, of which
    other tests open many until it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
