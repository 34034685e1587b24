"""The Prometheus metrics of a server, with vLLM's names where the meaning is equal, so that its dashboards work here.

>>> metrics = Metrics("phi", load)
>>> metrics.arrived("vision")
>>> metrics.finished(Times(0.0, 0.1, 0.5, 2.0), "stop", prompt=300, cached=0, generated=20)
>>> body, content_type = metrics.render()

Points in time are values of `time.monotonic`. Counters start with the server, in a separate registry. All methods are
thread-safe.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polyphi.engine.engine import Counters
from polyphi.engine.request import adapter_name

SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    1800,
)
TOKENS = (
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
)
PREFIX = "polyphi:"
VLLM_PREFIX = "vllm:"
NOT_IN_VLLM = (
    "adapter_requests",
    "media_",
    "audio_",
    "encoder_",
    "kv_cache_b",
    "engine_",
    "requests_bytes",
    "live_",
    "stored_",
)
"""Prefixes of the names that vLLM doesn't have."""

FRAMES_PER_SECOND = 100
"""Log-mel frames per second of audio."""


@dataclass(frozen=True)
class Times:
    """Points in time of a request: when it `arrived`, when its prompt `started` to run and when its `first` token was
    sampled (None where that never happened), and when it `ended`."""

    arrived: float
    started: float | None
    first: float | None
    ended: float


@dataclass(frozen=True)
class Load:
    """The current load: the engine's counters, the number of waiting requests (also outside the engine), the bytes of
    all requests, the sessions of live transcription, and the number and bytes of stored responses."""

    counters: Counters
    waiting: int
    requests_bytes: int
    live_sessions: int = 0
    stored_responses: int = 0
    stored_bytes: int = 0


class ServerMetrics(Collector):
    """The metrics of one server. Rendering calls `load`. `vllm_names`: also export them under vLLM's names."""

    def __init__(self, model: str, load: Callable[[], Load], *, vllm_names: bool = False) -> None:
        self.model, self.load, self.vllm_names = model, load, vllm_names
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, ("model_name", *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            names = ("model_name", *labels)
            return Histogram(PREFIX + name, text, names, registry=self.registry, buckets=buckets)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return histogram(f"{name}_seconds", text, SECONDS, *labels)

        one = {"model_name": model}
        self._prompt = counter("prompt_tokens", "Prompt tokens of ended requests.").labels(**one)
        self._generated = counter("generation_tokens", "Tokens sampled for ended requests.").labels(
            **one
        )
        self._cache_queries = counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        ).labels(**one)
        self._cache_hits = counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        ).labels(**one)
        self._ended = counter("request_success", "Ended requests by reason.", "finished_reason")
        self._first = seconds("time_to_first_token", "From arrival to the first token.").labels(
            **one
        )
        self._gap = seconds("inter_token_latency", "From one token to the next.").labels(**one)
        self._whole = seconds("e2e_request_latency", "From arrival to the end.").labels(**one)
        self._queue = seconds(
            "request_queue_time", "From arrival to the first step of the prompt."
        ).labels(**one)
        self._prefill = seconds(
            "request_prefill_time", "From the first step of the prompt to the first token."
        ).labels(**one)
        self._decode = seconds("request_decode_time", "From the first token to the end.").labels(
            **one
        )
        self._prompts = histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKENS
        ).labels(**one)
        self._answers = histogram(
            "request_generation_tokens", "Tokens sampled for a request.", TOKENS
        ).labels(**one)
        self._step = histogram(
            "iteration_tokens_total", "Tokens of an engine step.", TOKENS
        ).labels(**one)

        self._adapter = counter("adapter_requests", "Requests by adapter.", "adapter")
        self._decoding = seconds("media_decode", "Time to decode an image or audio.", "kind")
        self._rejected = counter("media_rejected", "Images and audio rejected.", "reason")
        self._audio = counter("audio_seconds", "Seconds of audio decoded.").labels(**one)
        self._live = seconds("live_transcript", "From a live item's end to its transcript.").labels(
            **one
        )
        self._revised = counter(
            "live_revisions", "Transcripts that didn't begin with the partial text before them."
        ).labels(**one)
        self._encoding = seconds("encoder", "Time to encode the images or audio of a step.", "kind")

    def arrived(self, adapter: str | None) -> None:
        """Counts an accepted request and its adapter."""
        self._adapter.labels(self.model, adapter_name(adapter or "none")).inc()

    def adapter_unloaded(self, name: str) -> None:
        """Drops the counter of an adapter: names of adapters that come and go would take memory."""
        with suppress(KeyError):
            self._adapter.remove(self.model, name)

    def finished(
        self, times: Times, reason: str, *, prompt: int, cached: int, generated: int
    ) -> None:
        """Records the end of an answer. `reason`: stop, length, abort or error; `cached`: prompt tokens from the prefix
        cache; `generated`: sampled tokens."""
        self._ended.labels(self.model, reason).inc()
        self._whole.observe(times.ended - times.arrived)
        if times.started is None:
            return
        self._queue.observe(times.started - times.arrived)
        self._prompt.inc(prompt)
        self._prompts.observe(prompt)
        self._cache_queries.inc(prompt)
        self._cache_hits.inc(cached)
        if times.first is None:
            return
        self._first.observe(times.first - times.arrived)
        self._prefill.observe(times.first - times.started)
        self._decode.observe(times.ended - times.first)
        self._generated.inc(generated)
        self._answers.observe(generated)

    def transcribed(self, seconds: float, *, prompt: int, generated: int) -> None:
        """Records a transcription of `seconds` of audio, with the tokens of all its segments."""
        self.audio_decoded(seconds)
        self._prompt.inc(prompt)
        self._generated.inc(generated)

    def live_completed(self, seconds: float, revised: bool) -> None:
        """Records the transcript of an item of a live session. `seconds`: since its end; `revised`: whether it
        contradicts the partial text."""
        self._live.observe(seconds)
        self._revised.inc(revised)

    def token(self, seconds: float) -> None:
        """Records the time between two tokens of an answer."""
        self._gap.observe(seconds)

    def step(self, tokens: int) -> None:
        """Records an engine step and its tokens: prompt tokens, last sampled tokens and draft tokens."""
        self._step.observe(tokens)

    def media_decoded(self, sizes: Mapping[str, int], seconds: float) -> None:
        """Records the time to decode media; `sizes` are those of their inputs by modality."""
        modality = "mixed" if len(sizes) > 1 else next(iter(sizes))
        self._decoding.labels(self.model, modality).observe(seconds)
        if frames := sizes.get("audio"):
            self.audio_decoded(frames / FRAMES_PER_SECOND)

    def media_rejected(self, reason: str) -> None:
        """Counts a rejected image or audio. `reason`: one of few words, such as an error's `code`."""
        self._rejected.labels(self.model, reason).inc()

    def audio_decoded(self, seconds: float) -> None:
        """Counts decoded audio."""
        self._audio.inc(seconds)

    def encoded(self, modality: str, seconds: float) -> None:
        """Records the run time of an encoder; `modality`: "image" or "audio"."""
        self._encoding.labels(self.model, modality).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """All metric families, for the Prometheus library."""
        for family in [*self.registry.collect(), *self._engine()]:
            # The library adds a `_created` series for each metric; dashboards don't need it.
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
            if self.vllm_names and not family.name.removeprefix(PREFIX).startswith(NOT_IN_VLLM):
                yield _renamed(family)

    def _engine(self) -> Iterator[Metric]:
        load = self.load()
        engine = load.counters
        gauges: dict[str, tuple[float, str]] = {
            "num_requests_running": (engine.running, "Requests that are running."),
            "num_requests_waiting": (load.waiting, "Requests that are waiting."),
            "kv_cache_usage_perc": (
                engine.blocks_in_use / engine.blocks,
                "Share of the KV cache blocks in use by requests, 0 to 1.",
            ),
            "kv_cache_blocks": (engine.blocks, "KV cache blocks in total."),
            "kv_cache_blocks_cached": (
                engine.blocks_cached,
                "KV cache blocks kept for later requests.",
            ),
            "kv_cache_bytes": (
                engine.cache_bytes,
                "Memory of the KV cache: it grows with the blocks that were ever used, and stays.",
            ),
            "encoder_cached_bytes": (engine.encoded_bytes, "Bytes of cached encoder outputs."),
            "requests_bytes": (
                load.requests_bytes,
                "Bytes of all requests: bodies, media, prompts, and output that waits to be read.",
            ),
            "live_sessions": (load.live_sessions, "Open sessions of live transcription."),
            "stored_responses": (load.stored_responses, "Stored responses."),
            "stored_responses_bytes": (load.stored_bytes, "Bytes of stored responses."),
        }
        counters: dict[str, tuple[int, str]] = {
            "num_preemptions": (
                engine.preemptions,
                "Preemptions: a request's blocks went to another request.",
            ),
            "mm_cache_queries": (engine.encoder_queries, "Images and audio of prompts."),
            "mm_cache_hits": (engine.encoder_hits, "Images and audio with cached encoder outputs."),
            "engine_steps": (engine.steps, "Engine steps."),
        }
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
        for name, (count, text) in counters.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            counter.add_metric([self.model], count)
            yield counter

    def render(self) -> tuple[bytes, str]:
        """(body, content type) of a scrape. Waits for the engine's current step: call it outside the event loop."""
        return generate_latest(self), CONTENT_TYPE_PLAIN_0_0_4


def _renamed(family: Metric) -> Metric:
    name = family.name.replace(PREFIX, VLLM_PREFIX, 1)
    other = Metric(name, family.documentation, family.type, family.unit)
    other.samples = [
        s._replace(name=s.name.replace(PREFIX, VLLM_PREFIX, 1)) for s in family.samples
    ]
    return other
