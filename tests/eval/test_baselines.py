"""Baselines of held-out tasks, with models whose score is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.types.completion import Completion
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.routing import adapter_for
from polyphi_eval import baselines, scorers, statistics
from polyphi_eval.benchmark import Score
from polyphi_eval.heldout import CORE, TASKS, find, task
from polyphi_eval.report import heldout as report

TASK = task(
    "colour", "Colour of the square", "vision", "image_qa", scorers.exact, {"task": "colour"}
)
COLOURS = ["red", "blue", "green", "pink"]


def picture_question(i: int) -> Sample:
    colour = COLOURS[i % 4]
    messages = (
        Message.user(Image(f"{colour} {i}".encode()), "Which colour?"),
        Message.assistant(colour),
    )
    return Sample(
        f"s{i}", messages, "made up", "MIT", {"task": "colour", "language": ["en", "fr"][i % 2]}
    )


class Sighted:
    """Answers with the colour that the picture's bytes name, "red" without a picture or without an adapter; records its
    requests."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.requests: list[tuple[bool, str | None]] = []  # (whether it has a picture, adapter)
        self.fail_after = fail_after

    def generate(
        self, messages: Sequence[Message], *, sampling: Any = None, adapter: str | None = "auto"
    ) -> Completion:
        if self.fail_after is not None and len(self.requests) >= self.fail_after:
            raise KeyboardInterrupt
        pictures = media(messages, Image)
        self.requests.append((bool(pictures), adapter))
        sees = pictures and adapter is not None
        return Completion(pictures[0].source.split()[0].decode() if sees else "red")


SAMPLES = [picture_question(i) for i in range(80)]


def test_a_model_that_looks_beats_every_baseline(tmp_path: Path) -> None:
    model = Sighted()
    result = baselines.evaluate(model, TASK, SAMPLES, tmp_path)
    assert (result.n, result.score, result.verdict) == (80, 1.0, "beats")
    assert result.baselines.keys() == {"majority", "without", "shuffled", "no_adapter"}
    assert all(result.baselines[b].score == 0.25 for b in ("majority", "without", "no_adapter"))
    assert result.baselines["shuffled"].score < 0.5
    assert result.margin_low > 0 and result.low > 0.9
    assert result.adapter_lead is not None and result.adapter_lead.value == 0.75
    assert 0.6 < result.adapter_lead.low < 0.75 < result.adapter_lead.high < 0.9
    assert set(result.languages) == {"en", "fr"}
    # Only the input is missing in the baselines: the adapter is still that of a question with a picture.
    assert {adapter for pictured, adapter in model.requests if not pictured} == {"vision"}
    assert "beats" in report.line(result) and "100.0 %" in report.markdown([result.as_dict()])


def test_a_model_that_ignores_the_picture_does_not_beat_them(tmp_path: Path) -> None:
    blind = SimpleNamespace(generate=lambda messages, sampling, adapter: Completion("red"))
    result = baselines.evaluate(blind, TASK, SAMPLES, tmp_path)
    assert (result.score, result.margin, result.verdict) == (0.25, 0.0, "doesn't")


def test_a_model_that_looks_without_its_adapter_does_not_beat_them(tmp_path: Path) -> None:
    """What the encoder and the projector do alone is no achievement of the adapter."""

    def look(messages: Sequence[Message], sampling: Any, adapter: str | None) -> Completion:
        (picture,) = media(messages, Image) or [Image(b"red")]
        return Completion(picture.source.split()[0].decode())

    result = baselines.evaluate(SimpleNamespace(generate=look), TASK, SAMPLES, tmp_path)
    assert (result.score, result.best, result.verdict) == (1.0, "no_adapter", "doesn't")
    assert result.adapter_lead == baselines.Lead(0.0, 0.0, 0.0)


def test_too_few_samples_beat_no_baseline(tmp_path: Path) -> None:
    assert baselines.evaluate(Sighted(), TASK, SAMPLES[:8], tmp_path).verdict == "doesn't"


def test_answers_are_saved_and_an_interrupted_run_resumes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        baselines.evaluate(Sighted(fail_after=100), TASK, SAMPLES, tmp_path)
    path = tmp_path / "colour.jsonl"
    with path.open("a") as f:
        f.write('{"cut short')
    again = Sighted()
    result = baselines.evaluate(again, TASK, SAMPLES, tmp_path)
    # Without a picture all questions are equal, so one request is sent.
    assert len(again.requests) == 241 - 80 and result.score == 1.0
    idle = Sighted()
    assert baselines.evaluate(idle, TASK, SAMPLES, tmp_path) == result and not idle.requests
    other = Sighted()
    baselines.evaluate(other, TASK, SAMPLES, tmp_path, fingerprint="other weights")
    assert len(other.requests) == 241


def test_scores_are_recomputed_from_the_lines(tmp_path: Path) -> None:
    result = baselines.evaluate(Sighted(), TASK, SAMPLES, tmp_path)
    assert (
        baselines.rescore(tmp_path, [TASK])
        == baselines.rescore(tmp_path, [])
        == [json.loads(json.dumps(result.as_dict()))]
    )
    with pytest.raises(ValueError, match=r"no \*.jsonl"):
        baselines.rescore(tmp_path / "nowhere")


def test_only_the_tasks_samples_and_no_more_than_the_limit(tmp_path: Path) -> None:
    other = Sample("x", SAMPLES[0].messages, "made up", "MIT", {"task": "shape"})
    chosen = baselines.select(TASK, [other, *SAMPLES], 10, seed=3)
    assert len(chosen) == 10 and other not in chosen
    assert [s.meta["language"] for s in chosen].count("fr") == 5
    assert chosen == baselines.select(TASK, [other, *SAMPLES], 10, seed=3)
    assert baselines.evaluate(Sighted(), TASK, [other], tmp_path).n == 0


def test_shuffled_media_are_never_ones_own() -> None:
    for q in baselines.prompts_of(TASK, SAMPLES, ["shuffled"], seed=0):
        assert media(q.messages, Image)[0] != media(q.sample.prompt, Image)[0]
        assert q.messages[0].text == "Which colour?"


def test_a_spoken_question_about_a_picture_has_baselines_for_both() -> None:
    spoken = task("spoken", "Spoken", "joint", "vision_speech", scorers.exact, {})
    samples = [
        Sample(
            f"{i}",
            (Message.user(Image(b"p%d" % i), Audio(b"a%d" % i)), Message.assistant("x")),
            "made up",
            "MIT",
        )
        for i in range(3)
    ]
    prompts = list(baselines.prompts_of(spoken, samples, baselines.CONDITIONS, seed=0))
    assert {q.condition for q in prompts} == {
        "with",
        "without",
        "shuffled",
        "without_clip",
        "shuffled_clip",
        "no_adapter",
    }
    adapters = {"with": "auto", "no_adapter": None}
    for q in prompts:
        assert q.adapter == adapters.get(q.condition, adapter_for(q.sample.prompt))
        images, clips = media(q.messages, Image), media(q.messages, Audio)
        assert len(images) == (q.condition != "without") and len(clips) == (
            q.condition != "without_clip"
        )
        assert (clips == media(q.sample.prompt, Audio)) == (
            q.condition not in ("without_clip", "shuffled_clip")
        )
        assert (images == media(q.sample.prompt, Image)) == (
            q.condition not in ("without", "shuffled")
        )


def test_text_tasks_have_the_majority_baseline_alone(tmp_path: Path) -> None:
    sums = task("sums", "Sums", "text", "instructions", scorers.number, {})
    samples = [
        Sample(
            f"{i}",
            (Message.user(Text(f"{i}+0")), Message.assistant(f"{i} + 0 = {i % 5}")),
            "made up",
            "MIT",
            {},
        )
        for i in range(30)
    ]
    echo = SimpleNamespace(generate=lambda messages, sampling, adapter: Completion("0"))
    result = baselines.evaluate(echo, sums, samples, tmp_path)
    assert list(result.baselines) == ["majority"]
    assert result.baselines["majority"].score == pytest.approx(
        0.2
    )  # the shared result, though all workings differ


def test_error_rates_count_units_not_samples(tmp_path: Path) -> None:
    asr = task("asr", "ASR", "speech", "asr", scorers.wer, {}, "wer")
    texts = ["one"] * 30 + ["one two three four five six"] * 10
    samples = [
        Sample(f"{i}", (Message.user("?"), Message.assistant(t)), "m", "MIT")
        for i, t in enumerate(texts)
    ]
    half = SimpleNamespace(generate=lambda messages, sampling, adapter: Completion("one two three"))
    result = baselines.evaluate(half, asr, samples, tmp_path)
    assert result.score == pytest.approx((30 * 2 + 10 * 3) / (30 + 60))
    assert result.baselines["majority"].score == pytest.approx(
        10 * 5 / 90
    )  # "one" is the best constant
    assert result.verdict == "doesn't" and result.margin < 0


def test_corpus_bleu_is_sacrebleus() -> None:
    from sacrebleu.metrics.bleu import BLEU

    pairs = [
        ("the cat sat on a mat", "the cat sat on the mat"),
        ("a b", "b a c d"),
        ("hello world again you", "no"),
    ]
    for use in (pairs, pairs[1:], pairs[2:], pairs[1:2]):
        samples = [Sample("s", (Message.assistant(r),), "m", "MIT") for _, r in use]
        scores = [scorers.bleu(a, s) for (a, _), s in zip(use, samples, strict=True)]
        bleu = statistics.rates(
            "bleu", np.array([statistics.vector("bleu", s) for s in scores]).sum(0)
        )
        theirs = BLEU().corpus_score([a for a, _ in use], [[r for _, r in use]])
        assert float(bleu) == pytest.approx(theirs.score, rel=1e-12)


def test_intervals() -> None:
    low, high = statistics.wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert (
        statistics.wilson(1.0, 50)[1] == pytest.approx(1.0) and statistics.wilson(0.0, 50)[0] == 0.0
    )
    # A bootstrap of a mean agrees with the normal approximation.
    values = np.random.default_rng(0).random(400)
    _, low, high = statistics.measure("accuracy", np.stack([values, np.ones(400)], 1), 0)
    half = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_shards_can_be_evaluated(tmp_path: Path) -> None:
    shards.write(tmp_path / "image_qa" / "test", SAMPLES, pipeline="p")
    result = baselines.evaluate(
        Sighted(), TASK, shards.Shards(tmp_path / "image_qa" / "test"), tmp_path / "eval", limit=40
    )
    assert (result.n, result.score) == (40, 1.0)


def test_models_with_generate_many_receive_batches(tmp_path: Path) -> None:
    sizes = []

    class Many(Sighted):
        def generate_many(
            self, conversations: list, *, sampling: Any, adapter: str | None
        ) -> list[Completion]:
            sizes.append(len(conversations))
            return [self.generate(c, sampling=sampling, adapter=adapter) for c in conversations]

    assert baselines.evaluate(Many(), TASK, SAMPLES, tmp_path).score == 1.0
    # With "auto", with the adapter that images select, and with none.
    assert sizes == [80, 81, 80]


def test_a_model_without_the_adapter_of_an_image_answers_without_one(tmp_path: Path) -> None:
    """As after a recipe's stages that train no adapter."""

    class Bare(Sighted):
        config = ModelConfig(decoder=DecoderConfig(), adapters={})

    model = Bare()
    baselines.evaluate(model, TASK, SAMPLES, tmp_path, conditions=("with", "shuffled"))
    assert {adapter for _, adapter in model.requests} == {"auto", None}


def test_every_row_of_the_table_has_a_scorer_that_works() -> None:
    for known in find():
        assert known.scorer
        score = known.scorer("an answer", Sample("s", (Message.assistant("3"),), "m", "MIT"))
        assert isinstance(score, Score) and 0 <= score.value <= 1
        if known.metric in ("wer", "cer"):
            assert {"errors", "units"} <= score.parts.keys()
    with pytest.raises(ValueError, match="no task is called"):
        find("a task that isn't there")


def test_the_core_has_49_rows_and_names_are_unique() -> None:
    assert len(CORE) == 49
    assert len({known.name for known in TASKS}) == len(TASKS)
    assert [t.name for t in find("digit", "copy")] == ["copy", "digit"]


def test_balanced_accuracy_is_the_mean_of_both_classes() -> None:
    rows = [Score(1.0, "", {"harmful": 1.0})] * 3 + [Score(0.0, "", {"harmful": 0.0})]
    summed = np.sum([statistics.vector("balanced", r) for r in rows], axis=0)
    assert statistics.rates("balanced", summed) == 0.5
