"""The metrics, parsed with the Prometheus library."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from polyphi.engine.engine import Counters, Engine
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.metrics import Load, ServerMetrics, Times
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.servers import serving

LOAD = Load(
    Counters(
        blocks=200,
        blocks_in_use=50,
        blocks_cached=20,
        cache_bytes=7000,
        encoded_bytes=4096,
        requests=5,
        running=2,
        preemptions=3,
        steps=7,
        tokens=900,
        encoder_queries=6,
        encoder_hits=4,
    ),
    waiting=3,
    requests_bytes=5000,
    live_sessions=1,
    stored_responses=8,
    stored_bytes=9000,
)
VLLMS = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "mm_cache_queries",
    "mm_cache_hits",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "num_preemptions",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "iteration_tokens_total",
}
OURS = {
    "adapter_requests",
    "media_decode_seconds",
    "media_rejected",
    "audio_seconds",
    "encoder_seconds",
    "encoder_cached_bytes",
    "kv_cache_blocks",
    "kv_cache_blocks_cached",
    "kv_cache_bytes",
    "engine_steps",
    "requests_bytes",
    "live_sessions",
    "live_transcript_seconds",
    "live_revisions",
    "stored_responses",
    "stored_responses_bytes",
}


def read(metrics: ServerMetrics) -> dict[str, float]:
    """Values by the name of the series, with labels except the model's in brackets."""
    body, kind = metrics.render()
    assert kind.startswith("text/plain; version=0.0.4")
    values = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "phi"
            label_text = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            key = f"{sample.name}[{label_text}]" if label_text else sample.name
            assert key not in values
            values[key] = sample.value
    return values


def names(metrics: ServerMetrics) -> set[str]:
    return {f.name for f in text_string_to_metric_families(metrics.render()[0].decode())}


def used(vllm_names: bool = False) -> ServerMetrics:
    metrics = ServerMetrics("phi", lambda: LOAD, vllm_names=vllm_names)
    metrics.arrived("vision")
    metrics.arrived("vision")
    metrics.arrived(None)
    metrics.finished(Times(10.0, 10.5, 12.0, 15.0), "stop", prompt=300, cached=256, generated=20)
    metrics.finished(Times(10.0, 11.0, None, 11.5), "abort", prompt=40, cached=0, generated=0)
    metrics.finished(Times(10.0, None, None, 13.0), "abort", prompt=1000, cached=0, generated=0)
    metrics.token(0.02)
    metrics.step(512)
    metrics.media_decoded({"image": 3}, 0.2)
    metrics.media_rejected("unsupported_media_type")
    metrics.audio_decoded(12.5)
    metrics.encoded("audio", 0.7)
    metrics.live_completed(0.5, revised=True)
    metrics.live_completed(0.25, revised=False)
    return metrics


def test_all_names_are_there() -> None:
    assert names(used()) == {f"polyphi:{name}" for name in VLLMS | OURS}


def test_events_become_the_right_numbers() -> None:
    values = {n.removeprefix("polyphi:"): v for n, v in read(used()).items()}
    expected = {
        "adapter_requests_total[adapter=vision]": 2,
        "adapter_requests_total[adapter=none]": 1,
        "live_transcript_seconds_sum": 0.75,
        "live_revisions_total": 1,
        "request_success_total[finished_reason=stop]": 1,
        "request_success_total[finished_reason=abort]": 2,
        "prompt_tokens_total": 340,
        "generation_tokens_total": 20,
        "prefix_cache_queries_total": 340,
        "prefix_cache_hits_total": 256,
        "e2e_request_latency_seconds_count": 3,
        "e2e_request_latency_seconds_sum": 9.5,
        "request_queue_time_seconds_count": 2,
        "request_queue_time_seconds_sum": 1.5,
        "time_to_first_token_seconds_count": 1,
        "time_to_first_token_seconds_sum": 2.0,
        "request_prefill_time_seconds_sum": 1.5,
        "request_decode_time_seconds_sum": 3.0,
        "request_prompt_tokens_count": 2,
        "request_generation_tokens_sum": 20,
        "inter_token_latency_seconds_bucket[le=0.01]": 0,
        "inter_token_latency_seconds_bucket[le=0.025]": 1,
        "iteration_tokens_total_sum": 512,
        "media_decode_seconds_count[kind=image]": 1,
        "media_rejected_total[reason=unsupported_media_type]": 1,
        "audio_seconds_total": 12.5,
        "encoder_seconds_sum[kind=audio]": 0.7,
        "num_requests_running": 2,
        "num_requests_waiting": 3,
        "kv_cache_usage_perc": 0.25,
        "kv_cache_blocks": 200,
        "kv_cache_blocks_cached": 20,
        "kv_cache_bytes": 7000,
        "encoder_cached_bytes": 4096,
        "num_preemptions_total": 3,
        "engine_steps_total": 7,
        "mm_cache_queries_total": 6,
        "mm_cache_hits_total": 4,
        "live_sessions": 1,
        "stored_responses": 8,
        "stored_responses_bytes": 9000,
    }
    assert {name: values.get(name) for name in expected} == pytest.approx(expected)
    assert not any("created" in name for name in values)


def test_vllms_names_have_the_same_values_and_ours_are_not_among_them() -> None:
    values = read(used(vllm_names=True))
    ours = {n.removeprefix("polyphi:"): v for n, v in values.items() if n.startswith("polyphi:")}
    vllms = {n.removeprefix("vllm:"): v for n, v in values.items() if n.startswith("vllm:")}
    assert len(ours) + len(vllms) == len(values) and ours == {
        n.removeprefix("polyphi:"): v for n, v in read(used()).items()
    }
    assert vllms and vllms.items() <= ours.items()
    families = names(used(vllm_names=True))
    assert {f.removeprefix("vllm:") for f in families if f.startswith("vllm:")} == VLLMS


def test_servers_share_no_numbers() -> None:
    before = {family.name for family in REGISTRY.collect()}
    one, other = used(), ServerMetrics("phi", lambda: LOAD)
    assert read(one)["polyphi:prompt_tokens_total"] == 340
    assert read(other)["polyphi:prompt_tokens_total"] == 0
    assert {family.name for family in REGISTRY.collect()} == before


def test_gauges_are_those_of_the_moment() -> None:
    now = [LOAD]
    metrics = ServerMetrics("phi", lambda: now[0])
    assert read(metrics)["polyphi:num_requests_running"] == 2
    assert read(metrics)["polyphi:requests_bytes"] == 5000
    now[0] = Load(replace(LOAD.counters, running=0), waiting=0, requests_bytes=0)
    assert read(metrics)["polyphi:num_requests_running"] == 0


def test_a_models_name_may_be_anything() -> None:
    name = 'a "b"\\ polyphi:c\nd'
    metrics = ServerMetrics(name, lambda: LOAD, vllm_names=True)
    families = text_string_to_metric_families(metrics.render()[0].decode())
    assert {s.labels["model_name"] for f in families for s in f.samples} == {name}


def test_threads_may_tell_at_once() -> None:
    metrics = ServerMetrics("phi", lambda: LOAD)

    def tell() -> None:
        for _ in range(500):
            metrics.step(1)
            metrics.arrived("speech")

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = read(metrics)
    assert values["polyphi:iteration_tokens_total_count"] == 2000
    assert values["polyphi:adapter_requests_total[adapter=speech]"] == 2000


def test_every_step_of_the_engine_is_one_observation_of_its_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before the server don't count, nor do those that fail; an idle engine runs none."""
    run = type(engine.runner).run
    sizes: list[int] = []

    def watched(runner: Any, parts: Any, memory: Any) -> Any:
        if any(len(part.request.prompt) > 100 for part in parts):
            raise RuntimeError("broken")
        sizes.append(sum(part.size for part in parts))
        return run(runner, parts, memory)

    monkeypatch.setattr(type(engine.runner), "run", watched)
    engine.generate([Message.user("1 + 2")], sampling=SamplingParams(max_tokens=9))
    sizes.clear()
    body = {"messages": [{"role": "user", "content": "the quick fox"}], "max_tokens": 12, "n": 2}
    long = {"messages": [{"role": "user", "content": "the quick brown fox " * 60}]}
    with serving(engine, Settings("phi")) as running, running.client() as client:
        metrics = running.server.metrics

        def observed() -> tuple[float, float]:
            values = read(metrics)
            name = "polyphi:iteration_tokens_total"
            assert values[f"{name}_bucket[le=+Inf]"] == values[f"{name}_count"]
            return values[f"{name}_count"], values[f"{name}_sum"]

        assert observed() == (0, 0)
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            assert client.post("/v1/chat/completions", json=long).status_code == 500
        with ThreadPoolExecutor(4) as threads:
            answers = [
                threads.submit(client.post, "/v1/chat/completions", json={**body, "seed": number})
                for number in range(8)
            ]
        assert {answer.result().status_code for answer in answers} == {200}
        assert observed() == (len(sizes), sum(sizes)) and len(sizes) > 30
    assert observed() == (len(sizes), sum(sizes))
