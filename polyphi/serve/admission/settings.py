"""The settings and limits of a server, many of them options of `polyphi serve`. The defaults are safe."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Group, Parameter, Token
from cyclopts.types import NonNegativeInt
from cyclopts.validators import Number

T = TypeVar("T")
Internal = Annotated[T, Parameter(parse=False)]
"""A field that is no option."""
MIB = 1 << 20
ACCESS, LOAD = Group("Access and logs", sort_key=1), Group("Load and memory", sort_key=2)


def check_key(key: str) -> None:
    """Raises ValueError for an API key that is empty or has a blank: it can't be sent, or may be meant as several."""
    if key.split() != [key]:
        raise ValueError(
            f"expected API keys without blanks, found {'one with blanks' if key else 'an empty one'}; give several "
            "keys by several --api-key, or one on each line of POLYPHI_API_KEY"
        )


def lines(_: type, text: str, **options: object) -> list[str]:
    """The values of an environment variable, one on each line; none of an empty one."""
    return [line for line in text.splitlines() if line]


def in_bytes(_: type, tokens: Sequence[Token], *, unit: int) -> int:
    """The bytes of an option that counts multiples of `unit` bytes."""
    amount = float(tokens[0].value)
    if not 0 <= amount < float("inf"):
        raise ValueError(f"expected at least 0, found {amount:g}")
    return round(amount * unit)


@Parameter(name="*")
@dataclass(frozen=True)
class Settings:
    """What `polyphi serve` serves, to whom and within which limits."""

    name: str = ""
    """Name of the model in responses; default: its folder's name."""
    aliases: Annotated[tuple[str, ...], Parameter(name="--alias")] = ()
    """A further name of the model; repeatable."""
    known_names: Annotated[bool | None, Parameter(negative="--no-known-names")] = None
    """Accept model names of OpenAI and Anthropic, such as gpt-4o and whisper-1, for this model; default: if only this
    machine can reach the server."""
    host: Annotated[str, Parameter(env_var="POLYPHI_HOST", env_var_split=lines)] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all addresses of this machine."""
    port: Annotated[
        int,
        Parameter(env_var="POLYPHI_PORT", env_var_split=lines, validator=Number(gte=0, lte=65535)),
    ] = 8000
    """Port to listen on; 0: a free one."""
    keys: Annotated[
        tuple[str, ...],
        Parameter(
            name="--api-key",
            env_var="POLYPHI_API_KEY",
            env_var_split=lines,
            show_env_var=False,
            allow_leading_hyphen=True,
        ),
    ] = ()
    """An API key that requests need; repeatable. Default: the lines of POLYPHI_API_KEY."""
    hosts: Annotated[tuple[str, ...], Parameter(name="--allow-host", group=ACCESS)] = ()
    """A host name of this server that Host headers may have, in addition to this machine's; repeatable."""
    origins: Annotated[tuple[str, ...], Parameter(name="--allow-origin", group=ACCESS)] = ()
    """Allowed origin of web pages, such as https://example.org; repeatable."""
    remote: Annotated[tuple[str, ...], Parameter(name="--allow-remote", group=ACCESS)] = ()
    """A host that media may be fetched from, such as `*.example.org` (all subdomains) or `*` (any public host), with
    `:8443` appended for another port; repeatable; default: none."""
    local: Annotated[Path | None, Parameter(name="--media-root", group=ACCESS)] = None
    """Folder below which file:// media may be read; default: none."""
    adapter_folder: Annotated[Path | None, Parameter(group=ACCESS)] = None
    """Let clients load adapters from below this folder, and unload them."""
    adapters: Internal[tuple[str, ...]] = ()
    """Names of the adapters that were added to those of the checkpoint; only these can be unloaded."""
    containers: Annotated[bool | None, Parameter(negative="--no-containers", group=ACCESS)] = None
    """Accept videos, PDFs and M4A, MP4, WebM, AAC and AMR audio; default: if this machine can isolate the decoder."""
    isolate_decoding: Annotated[
        bool | None, Parameter(negative="--no-isolate-decoding", group=ACCESS)
    ] = None
    """Decode images and audio in separate processes; default: if other machines can reach the server."""
    share_prefixes: Annotated[bool, Parameter(group=ACCESS)] = False
    """Share cached prefixes and encoder outputs between API keys; default: each key has its own."""
    vllm_names: Annotated[bool, Parameter(name="--vllm-metrics", group=ACCESS)] = False
    """Also export metrics under vLLM's names."""
    log_prompts: Annotated[bool, Parameter(group=ACCESS)] = False
    """Log prompts and answers."""
    reasoning: Internal[bool] = False
    """Whether answers may begin with `<think>...</think>`, which is then separated from their content."""

    max_header_bytes: Internal[int] = 32 << 10
    max_body_bytes: Internal[int] = 100 * MIB
    """Maximum bytes of a body. This, `max_requests_bytes`, `body_seconds` and `max_audio_bytes` are larger where
    `max_audio_seconds` is."""
    max_connections: Internal[int] = 512
    header_seconds: Internal[float] = 10.0
    """Time limit for the complete headers of a request."""
    body_seconds: Internal[float] = 120.0
    """Time limit for a body, and for a client to read a bufferful of a response."""
    max_messages: Internal[int] = 2048
    max_parts: Internal[int] = 256
    """Images, audio clips, frames of videos and pages of documents of a request."""
    max_image_bytes: Internal[int] = 20 * MIB
    max_image_pixels: Internal[int] = 89_478_485
    max_request_pixels: Internal[int] = 512_000_000
    """Maximum pixels of all images, frames of videos and pages of documents of a request: 42 photos of 12
    megapixels."""
    max_audio_bytes: Internal[int] = 64 * MIB
    max_audio_seconds: Annotated[float, Parameter(group=LOAD)] = 1800.0
    """Longest audio clip of a prompt, and longest chunk of a recording that is transcribed at once: up to 10080 (2.8
    hours). An hour takes 45,000 tokens, at the published size 5.9 GB of keys and values; larger bodies are accepted."""
    max_video_bytes: Internal[int] = 64 * MIB
    max_video_seconds: Internal[float] = 3600.0
    max_video_frames: Internal[int] = 64
    """Maximum frames of all videos of a request."""
    max_video_pixels: Internal[int] = 1 << 26
    """Maximum pixels of all frames of a request's videos: 192 MiB decoded."""
    max_document_bytes: Internal[int] = 32 * MIB
    max_document_pages: Internal[int] = 100
    max_document_characters: Internal[int] = 4_000_000
    """Maximum characters of a document's text."""
    max_recording_seconds: Internal[float] = 4 * 3600.0
    """Maximum length of a recording to transcribe."""
    fetch_seconds: Internal[float] = 20.0
    max_adapters: Internal[int] = 64
    """Maximum number of adapters that are loaded while the server runs."""
    max_adapter_bytes: Internal[int] = 8 << 30
    """Maximum bytes of the files of these `max_adapters` adapters."""
    max_answers: Internal[int] = 8
    max_tokens: Internal[int] = 16_384
    """Maximum tokens of an answer; the context may leave fewer."""
    max_requests_bytes: Annotated[
        int,
        Parameter(
            name="--requests-gb",
            metavar="FLOAT",
            converter=partial(in_bytes, unit=10**9),
            show_default=False,
            group=LOAD,
        ),
    ] = 2048 * MIB
    """Memory for all requests: bodies, media, prompts (token ids, crops and log-mel frames) and output that waits to be
    read; default: 2 GiB. A single request may take more; further ones receive HTTP 429."""
    max_stored_bytes: Annotated[
        int,
        Parameter(
            name="--store-mb",
            converter=partial(in_bytes, unit=MIB),
            show_default=lambda value: value // MIB,
            group=LOAD,
        ),
    ] = 256 * MIB
    """Memory for stored responses (/v1/responses) in MiB; 0 stores none."""
    max_waiting: Annotated[NonNegativeInt, Parameter(group=LOAD)] = 64
    """Maximum number of waiting requests; further ones receive HTTP 429."""
    max_live_sessions: Internal[int] = 32
    """Sessions of live transcription."""
    max_live_event_bytes: Internal[int] = 4 * MIB
    """Maximum bytes of a message to a live session: 60 s of audio."""
    max_live_buffer_seconds: Internal[float] = 300.0
    """Maximum length of the audio that waits for its transcript in a live session."""
    live_idle_seconds: Internal[float] = 120.0
    """Time without a message after which a session ends."""
    live_seconds: Internal[float] = 3600.0
    """Time after which a session ends."""
    drain_seconds: Annotated[float, Parameter(validator=Number(gte=0, lte=86400), group=LOAD)] = 5.0
    """Time for running requests to finish after SIGTERM; the process ends at most 3 s later."""

    def __post_init__(self) -> None:
        for key in self.keys:
            check_key(key)
        if self.max_audio_seconds != Settings.max_audio_seconds:
            from polyphi.media.media import check_audio_seconds  # numpy and others, for a number

            check_audio_seconds(self.max_audio_seconds)
        if (longer := self.max_audio_seconds / Settings.max_audio_seconds) > 1:
            # WAV at 16 kHz fits in a body, as half an hour of it does by default, and the other bodies have as much
            # memory as by default.
            body = round(longer * Settings.max_body_bytes)
            for name, least in (
                ("max_audio_bytes", round(longer * Settings.max_audio_bytes)),
                ("max_body_bytes", body),
                (
                    "max_requests_bytes",
                    Settings.max_requests_bytes - Settings.max_body_bytes + body,
                ),
                ("body_seconds", longer * Settings.body_seconds),
            ):
                object.__setattr__(self, name, max(getattr(self, name), least))
