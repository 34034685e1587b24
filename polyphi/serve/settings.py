"""What a server may do and how much of it, as `polyphi serve` was told; the defaults are the safe ones."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """`name`: what the model is called in answers. `keys`: API keys of which every request needs one (none: no key).
    `hosts`: names besides this machine's own that a Host header may hold. `origins`: web pages that may ask.

    `remote`: hosts that media are fetched from ("*.example.org" all below it, "*" any public one; on a port of its own
    with ":8443" behind); none: never.
    `local`: folder below which `file://` media may lie; None: never.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    local: Path | None = None
    isolate: bool = False
    """Whether what is remembered of one key's requests stays with that key."""
    vllm_names: bool = False
    """Whether metrics are told by vLLM's names too."""
    log_prompts: bool = False

    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 100 * MIB
    max_bodies_bytes: int = 512 * MIB
    """Of all requests in memory until their answers begin."""
    max_connections: int = 512
    header_seconds: float = 10.0
    """In which the whole head of a request must come."""
    body_seconds: float = 120.0
    """In which a body must come, and that a client may leave an answer unread."""
    max_messages: int = 2048
    max_parts: int = 256
    """Pictures and clips of a request."""
    max_image_bytes: int = 20 * MIB
    max_image_pixels: int = 89_478_485
    max_audio_bytes: int = 64 * MIB
    max_audio_seconds: float = 1800.0
    max_recording_seconds: float = 4 * 3600.0
    """Of a transcription."""
    fetch_seconds: float = 20.0
    max_answers: int = 8
    max_tokens: int = 16_384
    """Of an answer, at most what the context leaves."""
    max_prepared_bytes: int = 1024 * MIB
    """Of the prompts of all requests, waiting or being answered: token ids, crops and log-mel frames. A request that
    is alone may take more; otherwise one more is told to come again (429)."""
    max_waiting: int = 64
    """Requests that may wait for their turn; one more is told to come again (429)."""
    drain_seconds: float = 60.0
    """That requests under way are given when the server is asked to stop."""
