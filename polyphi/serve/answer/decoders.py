"""The processes in which a server decodes images, WAV, FLAC, OGG and MP3: its own, or separate ones as for all other
audio and videos.

>>> decoders = start(Settings("phi", host="0.0.0.0"))           # None: in the server's process
"""

import logging

from polyphi.media.isolated import DecoderError, is_isolated, start_decoders
from polyphi.runtime.fork_server import ForkServer
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.addresses import is_loopback

log = logging.getLogger("polyphi.serve")


def start(settings: Settings) -> ForkServer | None:
    """The server that forks the decoding processes; None where the server's process decodes. Logs what the system can't
    do. Raises ValueError where separate processes are requested but don't work."""
    separate = settings.isolate_decoding
    if separate is None:
        separate = not is_loopback(settings.host)
    if not separate:
        return None
    try:
        decoders = start_decoders()
    except DecoderError as error:
        if settings.isolate_decoding:
            raise ValueError(
                "--isolate-decoding: expected a system on which separate processes can decode, found that they fail "
                f"({error}); leave it out"
            ) from None
        log.warning(
            "images and audio are decoded in the server's process: a separate one fails on this system (%s)",
            error,
        )
        return None
    if not is_isolated(decoders):
        log.warning(
            "images and audio are decoded in separate processes whose system calls are not filtered: this system can't "
            "(Linux on x86-64 and AArch64 can)"
        )
    return decoders
