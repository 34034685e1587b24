"""The settings and limits of a server, from the options of `polyphi serve`. The defaults are safe."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


def check_key(key: str) -> None:
    """Raises ValueError for an API key that is empty or has a blank: it can't be sent, or may be meant as several."""
    if key.split() != [key]:
        raise ValueError(
            f"expected API keys without blanks, found {'one with blanks' if key else 'an empty one'}; give several "
            "keys by several --api-key, or one on each line of POLYPHI_API_KEY"
        )


@dataclass(frozen=True)
class Settings:
    """`name`: the model's name in responses. `keys`: API keys, of which every request needs one (empty: no key needed).
    `hosts`: names that a Host header may contain in addition to this machine's. `origins`: origins of web pages that
    may send requests.

    `remote`: hosts that media may be fetched from ("*.example.org": all subdomains, "*": any public host; with ":8443"
    appended for another port); empty: none.
    `local`: folder below which `file://` media may be read; None: none.
    """

    name: str
    aliases: tuple[str, ...] = ()
    """Further names of the model."""
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    local: Path | None = None
    adapter_folder: Path | None = None
    """Folder below which clients may load adapters (adapters.py); None: none."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that were added to those of the checkpoint; only these can be unloaded."""
    containers: bool | None = None
    """Whether M4A, MP4, WebM, AAC and AMR audio and videos are accepted. None: where their decoder can be isolated
    (processing/media_decoder.py)."""
    isolate_decoding: bool | None = None
    """Whether separate processes decode images and all audio (decoders.py). None: where other machines can reach the
    server."""
    share_prefixes: bool = False
    """Whether API keys share the prefix cache and the encoder cache; otherwise each key has separate ones."""
    vllm_names: bool = False
    """Whether metrics are also exported under vLLM's names."""
    log_prompts: bool = False
    reasoning: bool = False
    """Whether answers may begin with `<think>...</think>`, which is then separated from their content."""

    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 100 * MIB
    max_bodies_bytes: int = 512 * MIB
    """Of all requests, each until its prompt is prepared; one client may have a quarter, or one body (shares.py)."""
    max_connections: int = 512
    header_seconds: float = 10.0
    """Time limit for the complete headers of a request."""
    body_seconds: float = 120.0
    """Time limit for a body, and for a client to read a bufferful of a response."""
    max_messages: int = 2048
    max_parts: int = 256
    """Images, audio clips and frames of videos of a request."""
    max_image_bytes: int = 20 * MIB
    max_image_pixels: int = 89_478_485
    max_request_pixels: int = 512_000_000
    """Of all images of a request and the frames of its videos: 42 photos of 12 megapixels."""
    max_audio_bytes: int = 64 * MIB
    max_audio_seconds: float = 1800.0
    max_video_bytes: int = 64 * MIB
    max_video_seconds: float = 3600.0
    max_video_frames: int = 64
    """Of all videos of a request."""
    max_video_pixels: int = 1 << 26
    """Of all these frames: 192 MiB decoded."""
    max_recording_seconds: float = 4 * 3600.0
    """Of a recording to transcribe."""
    fetch_seconds: float = 20.0
    max_adapters: int = 64
    """Loaded while the server runs."""
    max_adapter_bytes: int = 8 << 30
    """Of the files of all these adapters."""
    max_answers: int = 8
    max_tokens: int = 16_384
    """Of an answer; the context may leave fewer."""
    max_prepared_bytes: int = 1024 * MIB
    """Of the prompts of all running and waiting requests: token ids, crops and log-mel frames. A single request may
    take more; otherwise the server returns 429 above it."""
    max_stored_bytes: int = 256 * MIB
    """Of the responses that are stored for later requests (store.py); 0: none are."""
    max_waiting: int = 64
    """Requests that may wait in the queue; the server returns 429 above it."""
    max_live_sessions: int = 32
    """Sessions of live transcription; one client may have three quarters of them."""
    max_live_event_bytes: int = 4 * MIB
    """Of a message to a session: 60 s of audio."""
    max_live_buffer_seconds: float = 300.0
    """Of audio that waits for its transcript in a session."""
    live_idle_seconds: float = 120.0
    """Time without a message after which a session ends."""
    live_seconds: float = 3600.0
    """Time after which a session ends."""
    drain_seconds: float = 5.0
    """Time for running requests to finish after a stop signal; the process ends at most 3 s later (run.py)."""
