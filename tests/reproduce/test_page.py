"""The report page, from a made-up run folder."""

import base64
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image as Picture

from polyphi import stages
from polyphi.chat import Audio, Image, Message
from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.eval import run, scorers
from polyphi.eval.suite import Measured
from polyphi.eval.task import Task
from polyphi.reproduce import drawing, page

TASKS = (
    Task(
        "made_up_arithmetic",
        "Sums and differences",
        "text",
        "instructions",
        scorers.number,
        note="numbers up to 20",
    ),
    Task("made_up_tool_call", "Tool calls", "text", "tools", scorers.json_call),
    Task("made_up_digit", "Scanned digits", "vision", "image_qa", scorers.exact),
    Task("made_up_count", "Counting shapes", "vision", "image_qa", scorers.exact),
    Task("made_up_stamp", "Naming stamps", "vision", "image_qa", scorers.exact),
    Task(
        "made_up_spoken_digits",
        "Spoken digit strings",
        "speech",
        "asr",
        scorers.digits_wer,
        metric="wer",
    ),
    Task(
        "made_up_translate_speech",
        "Speech translation",
        "speech",
        "ast",
        scorers.bleu,
        metric="bleu",
    ),
    Task(
        "made_up_spoken_question",
        "Spoken questions about a picture",
        "joint",
        "vision_speech",
        scorers.exact,
    ),
    Task(
        "made_up_harmful_speech",
        "Declining harmful spoken requests",
        "safety",
        "audio_safety",
        scorers.refusal,
    ),
)
SKILL = dict(
    zip([t.name for t in TASKS], (0.9, 0.1, 0.95, 0.7, 0.4, 0.93, 0.6, 0.75, 0.97), strict=True)
)


def png(value: int) -> bytes:
    draw, out = np.random.default_rng(value), io.BytesIO()
    pixels = (draw.random((28, 28)) * 60 + 40 * (value % 5)).astype("uint8")
    Picture.fromarray(pixels).resize((112, 112)).save(out, "PNG")
    return out.getvalue()


def wav(value: int) -> bytes:
    out = io.BytesIO()
    wave = 0.3 * np.sin(2 * math.pi * (300 + 40 * value) * np.arange(4000) / 8000)
    soundfile.write(out, wave.astype("float32"), 8000, format="WAV")
    return out.getvalue()


def sample(task: Task, i: int) -> Sample:
    answer, source, licence = str(i % 5), "polyphi", "MIT"
    parts: list[Any] = []
    if task.modality in ("vision", "joint"):
        parts.append(Image(png(i)))
        if task.name == "made_up_digit":
            source, licence = "scikit-learn-digits", "BSD-3-Clause"
        if task.name == "made_up_stamp":
            source, licence = "tuxpaint-stamps-default", "GPL-2.0-or-later"
    if task.modality in ("speech", "joint", "safety"):
        parts.append(Audio(wav(i)))
    if task.modality != "joint":
        parts.append(f"What is it, number {i}? <b>&")
    if task.name == "made_up_spoken_digits":
        answer = " ".join(str((i * k) % 10) for k in range(1, 4))
    if task.name == "made_up_translate_speech":
        answer = " ".join(["one", "red", "house", "and", "two", "cats"][: 3 + i % 4])
    if task.name == "made_up_tool_call":
        answer = json.dumps([{"name": "add", "arguments": {"a": i % 3}}])
    if task.name == "made_up_harmful_speech":
        answer = "I can't help with that." if i % 2 else "Of course."
    meta = {"task": task.name, "language": ["en", "fr", "de"][i % 3]}
    messages = (Message("user", tuple(Message.user(*parts).parts)), Message.assistant(answer))
    return Sample(f"{task.name}-{i}", messages, source, licence, meta)


def answers(task: Task, samples: list[Sample]) -> Any:
    """A model that is right at the task's rate where it gets the sample's own media, and guesses otherwise."""
    right = {
        run.key_of(
            q.messages, q.adapter, run.SamplingParams(max_tokens=task.max_tokens), ""
        ): q.sample
        for q in run.ask(task, samples, ["with"], 0)
    }

    class Model:
        def generate(self, messages: Any, *, sampling: Any, adapter: str | None) -> Any:
            draw = random.Random(str(messages)[-2000:])
            own = right.get(run.key_of(tuple(messages), "auto", sampling, ""))
            other = draw.choice(samples)
            return run_completion(
                (own if own is not None and draw.random() < SKILL[task.name] else other).answer
            )

    return Model()


def run_completion(text: str) -> Any:
    from polyphi.chat import Completion

    return Completion(text)


def make_run(out: Path, n: int = 40, steps: int = 300) -> Path:
    """A run folder as `polyphi reproduce` leaves it, with made-up numbers."""
    by_corpus: dict[str, list[Sample]] = {}
    for task in TASKS:
        samples = [sample(task, i) for i in range(n)]
        by_corpus.setdefault(task.corpus, []).extend(samples)
        run.evaluate(answers(task, samples), task, samples, out / "eval")
    for corpus, rows in by_corpus.items():
        shards.write(out / "data" / corpus / "test", rows, pipeline="p")
        shards.write(out / "data" / corpus / "train", rows[:3], pipeline="p")
    for k, name in enumerate(stages.ORDER):
        folder = out / "stages" / name
        folder.mkdir(parents=True)
        stage, draw = stages.load(name), random.Random(name)
        frozen = (
            []
            if name.startswith(("text", "reasoning"))
            else ["decoder.embed_tokens.weight", "decoder.norm.weight"]
        )
        if name.startswith(("vision_3", "vision_4", "joint")):
            frozen.append(
                "audio.encoder.subsampling.out.weight"
                if name.startswith("joint")
                else "vision.encoder.x"
            )
        if name.startswith("speech"):
            frozen.append("audio.encoder.subsampling.out.weight")
        hashes = {f: f"{abs(hash(f)):064x}"[:64] for f in frozen}
        learned = [
            {
                "module": glob,
                "parameters": 10 ** (4 + i + k % 3),
                "rate": rate,
                "from": [stage.start.get("*", "fresh")],
            }
            for i, (glob, rate) in enumerate(stage.learn.items())
        ]
        manifest = {
            "stage": name, "parents": {p: 3 for p in stage.parents}, "who_learns": learned,
            "steps": steps, "seconds": 40.0 + 9 * k,
            "frozen": {name: [sha, sha] for name, sha in hashes.items()},
            "counters": {"samples": 1200, "tokens": 48_000, "crops": 700 * name.startswith("vision"), "frames": 0},
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        lines = [
            json.dumps(
                {"step": s, "loss": 1 + 6 * math.exp(-s / 60) + 0.3 * draw.random(), "rate": 1e-3}
            )
            for s in range(steps)
        ]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 12']))
    checks = [
        {"stage": s, "logits_sha256_before": "ab" * 32, "logits_sha256_after": "ab" * 32}
        for s in stages.ORDER
        if s.startswith(("vision", "speech", "joint"))
    ]
    (out / "freeze.json").write_text(json.dumps(checks))
    seconds = {
        "corpus image_qa": 41.0,
        "tokenizer": 6.0,
        **{s: 40.0 + 9 * k for k, s in enumerate(stages.ORDER)},
    }
    seconds |= {"evaluation": 200.0, "total": 1735.0}
    (out / "timings.json").write_text(json.dumps({"seconds": seconds, "peak_bytes": 3_400_000_000}))
    (out / "run.json").write_text(json.dumps({"size": "nano", "seed": 0}))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_run(tmp_path_factory.mktemp("run"), n=24, steps=30)
    assert page.write(out) == out / "report.html"
    return out


def test_the_page_needs_nothing_else(made: Path) -> None:
    text = (made / "report.html").read_text()
    assert len(text) < 5_000_000
    assert (
        not re.search(r"(src|href)=\"(?!data:|#)", text)
        and "url(http" not in text
        and "<script" not in text
    )
    for heading in (
        "Held-out results",
        "What it saw",
        "Loss of every stage",
        "Who learned",
        "Frozen is frozen",
        "Data",
    ):
        assert heading in text
    assert "What is it, number" in text and "<b>&<" not in text and "&lt;b&gt;&amp;" in text
    assert "$" not in re.sub(r"base64,[^\"]+", "", text)


def test_tags_are_closed(made: Path) -> None:
    class Check(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: Any) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    check = Check()
    check.feed((made / "report.html").read_text())
    assert not check.open


def test_every_number_is_in_the_json(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    assert len(report["stages"]) == 16 and report["summary"]["stages_done"] == 16
    assert report["tasks"] == run.rescore(made / "eval")
    assert report["summary"]["beats"] == sum(r["verdict"] == "beats" for r in report["tasks"]) > 0
    assert report["summary"]["frozen_checks"] == report["summary"]["frozen_checks_equal"] == 9
    media = {m["sha256"]: b"x" for e in report["gallery"] for m in e["media"]}
    # The pages are functions of the JSON (and the media) alone.
    assert page.render_markdown(report) == (made / "report.md").read_text()
    assert "Scanned digits" in page.render(report, media)


def test_only_what_may_be_shared_is_embedded(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    assert report["gallery"] and {e["modality"] for e in report["gallery"]} == {
        "vision",
        "speech",
        "joint",
        "safety",
    }
    assert not [
        e for e in report["gallery"] if "GPL" in e["licence"] or e["task"] == "made_up_stamp"
    ]
    text = (made / "report.html").read_text()
    assert (
        base64.b64encode(png(3)).decode()[:40] in text
        or base64.b64encode(png(4)).decode()[:40] in text
    )
    assert "BSD-3-Clause" in text


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"size": "micro", "seed": 3}')
    text = page.write(tmp_path).read_text()
    assert "0 of 16 stages" in text
    assert "0 of 16 stages" in (tmp_path / "report.md").read_text()


def test_the_reports_benchmarks_stand_there_with_what_they_are_worth(tmp_path: Path) -> None:
    row = Measured(
        "Table 1", "ChartQA (test)", "chartqa", "accuracy", 2, 0.5, 0.1, 0.9, "substitute data"
    )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results.json").write_text(json.dumps({"rows": [row.as_dict()]}))
    (tmp_path / "run.json").write_text('{"size": "micro", "seed": 3}')
    html, text = page.write(tmp_path).read_text(), (tmp_path / "report.md").read_text()
    for told in (html, text):
        assert "ChartQA (test)" in told and "not to be compared with the report" in told
    assert 'href="benchmarks/report.html"' in html
    assert json.loads((tmp_path / "report.json").read_text())["benchmarks"]["rows"][0]["n"] == 2


def test_frozen_tensors_that_changed_are_named() -> None:
    assert page._frozen({"frozen": {"a": ["1", "1"], "b": ["1", "2"]}})["changed"] == ["b"]
    assert page._frozen({})["names"] == []


def test_parts_of_globs() -> None:
    assert drawing.part_of("decoder.*.lora.vision.*") == ("LoRA for vision",)
    assert drawing.part_of("vision.*") == ("vision encoder", "vision projector")
    assert drawing.part_of("audio.projector.speech.*") == ("audio projector",)
    assert drawing.part_of("decoder.layers.0.mlp.down_proj.weight") == ("language model",)
    assert drawing.part_of("objective.*") == ("throw-away head",)
    assert len(drawing.part_of("*")) == 6


def test_curves_of_few_points() -> None:
    assert "path" not in drawing.curve([[0, 1.0]])
    assert drawing.curve([[0, 1.0], [1, 1.0]]).count("<path") == 3
