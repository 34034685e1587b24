"""The script that loads exports in other tools: its requests, and transformers where the tests have it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import polyphi
from polyphi.types.sampling import SamplingParams


@pytest.fixture
def script(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("interchange", Path(__file__).parents[1] / "release")


def test_answers_are_compared_by_kind(script: ModuleType) -> None:
    requests = [
        script.Request(f"{kind} {n}", kind, "", [1], "", "", [n, 5])
        for n, kind in enumerate(("text", "text", "image"))
    ]
    text, equal = script.compare(requests, {r.name: r.answer for r in requests})
    assert equal and "text 2 of 2" in text and "image 1 of 1" in text
    text, equal = script.compare(requests, {"text 0": [0, 5], "text 1": [1, 6]})
    assert not equal and "text 1 of 2" in text and "image" not in text
    assert script.compare(requests, {})[1] is False


def test_a_line_without_its_environment_is_left_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "ENVIRONMENTS", tmp_path)
    _, result, equal = script.run_line(script.LINES[0], tmp_path)
    assert not equal and "--setup" in result


@pytest.mark.long
def test_transformers_and_peft_answer_the_same(
    script: ModuleType, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this environment's versions; also that each request's ids are its prompt as polyphi reads it."""
    folder = tmp_path / "exports"
    script.prepare("run", tiny_run, folder)
    phi = polyphi.load(folder / "source", dtype="float32", device="cpu", cache_gb=0.1)
    requests = script.read_requests(folder)
    assert {"text", "image", "audio"} <= {r.kind for r in requests}
    assert {r.adapter for r in requests} == {"", "third", "vision", "speech"}
    first = requests[0]
    sampling = SamplingParams(max_tokens=script.TOKENS)
    assert list(phi.generate(first.ids, sampling=sampling, adapter=None).tokens) == first.answer

    bin = tmp_path / "environments" / "trl" / "bin"
    bin.mkdir(parents=True)
    (bin / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin / "python").chmod(0o755)
    monkeypatch.setattr(script, "ENVIRONMENTS", tmp_path / "environments")
    for part in ("mini", "native", "peft-native"):
        line = next(x for x in script.LINES if x.part == part)
        version, result, equal = script.run_line(line, folder)
        assert version and equal, result


@pytest.mark.long
def test_llama_cpp_answers_the_same(
    script: ModuleType, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Greedy tokens of GGUF exports in float32, on both sides of the LongRoPE switch, and ids of texts. Two logits of
    our answers are always further apart than the two programs, so that no rounding decides a token."""
    if not (script.ENVIRONMENTS / "llama" / "bin" / "python").exists():
        pytest.skip("llama.cpp isn't installed: `make .venv/.llama`")
    config = tiny_run / "model" / "config.json"
    values = json.loads(config.read_text())
    # llama.cpp rounds contexts up to 256, and chooses the factors by them
    config.write_text(json.dumps({**values, "original_max_position_embeddings": 256}))
    for name, parts in {"run": ("gguf", "gguf-third"), "published": ("gguf-published",)}.items():
        folder = tmp_path_factory.mktemp("exports") / name
        script.prepare(name, tiny_run, folder)
        kinds = {r.kind for r in script.read_requests(folder)}
        assert {"text", "long", "tokenization", "conversation"} <= kinds
        for part in parts:
            line = next(x for x in script.LINES if x.part == part)
            version, result, equal = script.run_line(line, folder)
            assert version and equal, result
            distances = script.logit_distances(folder, folder / f"{part}.npz").values()
            assert all(difference < min(gap, 5e-3) for difference, gap in distances), distances
