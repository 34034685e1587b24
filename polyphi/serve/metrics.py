"""What a server tells Prometheus, under vLLM's names where it means the same, so that its dashboards work here too.

>>> metrics = Metrics("phi", load)
>>> metrics.arrived("vision")
>>> metrics.finished(Times(0.0, 0.1, 0.5, 2.0), "stop", prompt=300, cached=0, generated=20)
>>> body, content_type = metrics.render()

Moments are those of `time.monotonic`; all times are intervals between two of one process. Values are counted from the
start of the server, in a registry of its own. Every method may be called from any thread.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polyphi.engine.core import Counters

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
OURS = "polyphi:"
VLLM = "vllm:"
NOT_VLLMS = (
    "adapter_requests",
    "media_",
    "audio_",
    "encoder_",
    "kv_cache_blocks",
    "engine_",
    "prepared_",
)
"""Beginnings of names that vLLM doesn't have."""


@dataclass(frozen=True)
class Times:
    """Moments of a request: when it `arrived`, when its prompt `started` to run, when its `first` token was drawn (None
    where that never happened), when it `ended`."""

    arrived: float
    started: float | None
    first: float | None
    ended: float


@dataclass(frozen=True)
class Load:
    """What the engine is busy with at a moment, how many requests wait outside it as well, and the bytes of the prompts
    of all of them."""

    counters: Counters
    waiting: int
    prepared_bytes: int


class Metrics(Collector):
    """The metrics of one server. `load` is asked whenever they are rendered; `vllm_names`: tell vLLM's names too."""

    def __init__(self, model: str, load: Callable[[], Load], *, vllm_names: bool = False) -> None:
        self.model, self.load, self.vllm_names = model, load, vllm_names
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(OURS + name, text, ("model_name", *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            names = ("model_name", *labels)
            return Histogram(OURS + name, text, names, registry=self.registry, buckets=buckets)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return histogram(f"{name}_seconds", text, SECONDS, *labels)

        one = {"model_name": model}
        self._prompt = counter("prompt_tokens", "Prompt tokens of ended requests.").labels(**one)
        self._generated = counter("generation_tokens", "Tokens drawn for ended requests.").labels(
            **one
        )
        self._asked = counter(
            "prefix_cache_queries", "Prompt tokens whose keys and values were looked for."
        ).labels(**one)
        self._found = counter(
            "prefix_cache_hits", "Prompt tokens whose keys and values were remembered."
        ).labels(**one)
        self._ended = counter("request_success", "Ended requests by reason.", "finished_reason")
        self._first = seconds("time_to_first_token", "From arrival to the first token.").labels(
            **one
        )
        self._gap = seconds("inter_token_latency", "From one token to the next.").labels(**one)
        self._whole = seconds("e2e_request_latency", "From arrival to the end.").labels(**one)
        self._queue = seconds(
            "request_queue_time", "From arrival to the prompt's first run."
        ).labels(**one)
        self._prefill = seconds(
            "request_prefill_time", "From the prompt's first run to the first token."
        ).labels(**one)
        self._decode = seconds("request_decode_time", "From the first token to the end.").labels(
            **one
        )
        self._prompts = histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKENS
        ).labels(**one)
        self._answers = histogram(
            "request_generation_tokens", "Tokens drawn for a request.", TOKENS
        ).labels(**one)
        self._step = histogram("iteration_tokens_total", "Tokens that a step ran.", TOKENS).labels(
            **one
        )

        self._adapter = counter("adapter_requests", "Requests by adapter.", "adapter")
        self._decoding = seconds("media_decode", "To decode a picture or clip.", "kind")
        self._rejected = counter("media_rejected", "Pictures and clips refused.", "reason")
        self._audio = counter("audio_seconds", "Seconds of audio heard.").labels(**one)
        self._encoding = seconds("encoder", "To encode the pictures or clips of a step.", "kind")

    def arrived(self, adapter: str | None) -> None:
        """A request was accepted, to be answered with that adapter."""
        self._adapter.labels(self.model, adapter or "none").inc()

    def finished(
        self, times: Times, reason: str, *, prompt: int, cached: int, generated: int
    ) -> None:
        """An answer ended. `reason`: stop, length, abort or error; `cached`: prompt tokens that were remembered;
        `generated`: tokens drawn."""
        self._ended.labels(self.model, reason).inc()
        self._whole.observe(times.ended - times.arrived)
        if times.started is None:
            return
        self._queue.observe(times.started - times.arrived)
        self._prompt.inc(prompt)
        self._prompts.observe(prompt)
        self._asked.inc(prompt)
        self._found.inc(cached)
        if times.first is None:
            return
        self._first.observe(times.first - times.arrived)
        self._prefill.observe(times.first - times.started)
        self._decode.observe(times.ended - times.first)
        self._generated.inc(generated)
        self._answers.observe(generated)

    def transcribed(self, seconds: float, *, prompt: int, generated: int) -> None:
        """A recording of that length was transcribed, with the tokens of all its pieces."""
        self.heard(seconds)
        self._prompt.inc(prompt)
        self._generated.inc(generated)

    def token(self, seconds: float) -> None:
        """A token was drawn that long after the one before it in the same answer."""
        self._gap.observe(seconds)

    def step(self, tokens: int) -> None:
        """The engine ran a step of so many tokens: of prompts, the last ones drawn, and draft tokens."""
        self._step.observe(tokens)

    def media_decoded(self, kind: str, seconds: float) -> None:
        """A picture ("image") or clip ("audio") took that long to decode."""
        self._decoding.labels(self.model, kind).observe(seconds)

    def media_rejected(self, reason: str) -> None:
        """A picture or clip was refused: a word out of few, such as an error's `code`."""
        self._rejected.labels(self.model, reason).inc()

    def heard(self, seconds: float) -> None:
        """Audio of that length was decoded."""
        self._audio.inc(seconds)

    def encoded(self, kind: str, seconds: float) -> None:
        """The encoder of that kind ran for so long."""
        self._encoding.labels(self.model, kind).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """All families, as Prometheus' library asks for them."""
        for family in [*self.registry.collect(), *self._engine()]:
            # When a series began is a series of its own to the library; nobody's dashboard wants it.
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
            if self.vllm_names and not family.name.removeprefix(OURS).startswith(NOT_VLLMS):
                yield _renamed(family)

    def _engine(self) -> Iterator[Metric]:
        load = self.load()
        held = load.counters
        gauges: dict[str, tuple[float, str]] = {
            "num_requests_running": (held.running, "Requests that run in steps."),
            "num_requests_waiting": (load.waiting, "Requests that wait for their turn."),
            "kv_cache_usage_perc": (
                held.blocks_in_use / held.blocks,
                "Share of the blocks of keys and values that requests hold, 1 being all.",
            ),
            "kv_cache_blocks": (held.blocks, "Blocks of keys and values there are."),
            "kv_cache_blocks_remembered": (
                held.blocks_cached,
                "Blocks kept for later requests.",
            ),
            "encoder_remembered_bytes": (held.encoded_bytes, "Encoder outputs kept."),
            "prepared_bytes": (
                load.prepared_bytes,
                "Prompts of requests, waiting or being answered: ids, crops, log-mel frames.",
            ),
        }
        counters: dict[str, tuple[int, str]] = {
            "num_preemptions": (
                held.preemptions,
                "Times that a request gave its blocks to another.",
            ),
            "mm_cache_queries": (held.encoder_queries, "Pictures and clips of prompts."),
            "mm_cache_hits": (held.encoder_hits, "Those whose encoder outputs were remembered."),
            "engine_steps": (held.steps, "Steps run."),
        }
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(OURS + name, text, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
        for name, (count, text) in counters.items():
            counter = CounterMetricFamily(OURS + name, text, labels=["model_name"])
            counter.add_metric([self.model], count)
            yield counter

    def render(self) -> tuple[bytes, str]:
        """(body, content type) of a scrape. Waits for the engine's step, so not for the event loop's thread."""
        return generate_latest(self), CONTENT_TYPE_PLAIN_0_0_4


def _renamed(family: Metric) -> Metric:
    name = family.name.replace(OURS, VLLM, 1)
    other = Metric(name, family.documentation, family.type, family.unit)
    other.samples = [s._replace(name=s.name.replace(OURS, VLLM, 1)) for s in family.samples]
    return other
