"""A run folder as `polyphi reproduce` leaves it, with made-up samples, answers and numbers.

>>> make_run(tmp_path / "run", n=24, steps=30)
"""

import io
import json
import math
import random
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image as Picture

from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi.types.sampling import SamplingParams
from polyphi_eval import baselines
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.cache import key_of
from polyphi_eval.heldout import find
from polyphi_recipe import stages

TASKS = find(
    *("arithmetic", "cot_arithmetic", "tool_call"),
    *("digit", "count", "stamp"),
    *("asr_digits", "ast_direct", "sqa_arithmetic", "sqa_compare"),
    *("spoken_question", "written_question"),
    *("refusals", "refusal"),
)
SKILL = {"tool_call": 0.1, "stamp": 0.4, "count": 0.7, "ast_direct": 0.6}
"""Share of right answers, where it isn't 0.9."""


def png(seed: int) -> bytes:
    draw, out = np.random.default_rng(seed), io.BytesIO()
    pixels = (draw.random((28, 28)) * 60 + 40 * (seed % 5)).astype("uint8")
    Picture.fromarray(pixels).resize((112, 112)).save(out, "PNG")
    return out.getvalue()


def wav(seed: int) -> bytes:
    out = io.BytesIO()
    wave = 0.3 * np.sin(2 * math.pi * (300 + seed % 1000) * np.arange(4000) / 8000)
    soundfile.write(out, wave.astype("float32"), 8000, format="WAV")
    return out.getvalue()


def sample(task: Benchmark, i: int) -> Sample:
    """The i-th sample of a task, with a picture and a clip where the task is about them. Samples of `refusal` are among
    those of `refusals`."""
    meta = {key: several[i % len(several)] if isinstance(several, list) else several
            for key, several in task.rows[0].only.items()}  # fmt: skip
    meta |= {"language": ["en", "fr", "de"][i % 3]}
    id = f"{task.corpus}-{'-'.join(map(str, meta.values()))}-{i}"
    seed = zlib.crc32(id.encode())
    answer, source, licence = str(i % 5), "polyphi", "MIT"
    parts: list[Any] = []
    if task.modality in ("vision", "joint"):
        parts.append(Image(png(seed)))
        if task.name == "digit":
            source, licence = "scikit-learn-digits", "BSD-3-Clause"
        if task.name == "stamp":
            source, licence = "tuxpaint-stamps-default", "GPL-2.0-or-later"
    if task.modality == "speech" or task.name == "spoken_question":
        parts.append(Audio(wav(seed)))
    if task.name == "spoken_question":
        meta["question"] = "What does the clip ask?"
    else:
        parts.append(f"What is it, number {i}? <b>&")
    if task.name == "asr_digits":
        answer = " ".join(str((i * k) % 10) for k in range(1, 4))
    if task.name == "ast_direct":
        answer = " ".join(["one", "red", "house", "and", "two", "cats"][: 3 + i % 4])
    if task.name == "tool_call":
        answer = json.dumps([{"name": "add", "arguments": {"a": i % 3}}])
    if task.name in ("refusals", "refusal"):
        meta["refuse"] = meta["task"] == "refusal"
        answer = "I can't help with that." if meta["refuse"] else "Of course."
    return Sample(id, (Message.user(*parts), Message.assistant(answer)), source, licence, meta)


class Model:
    """Is right at a rate where it gets the sample's own media, and answers another sample's question otherwise."""

    def __init__(self, task: Benchmark, samples: list[Sample], skill: float) -> None:
        sampling = SamplingParams(max_tokens=task.max_tokens)
        self.samples, self.skill = samples, skill
        self.right = {
            key_of(q.messages, q.adapter, sampling, ""): q.sample
            for q in baselines.prompts_of(task, samples, ["with"], 0)
        }

    def generate(self, messages: Any, *, sampling: Any, adapter: str | None) -> Completion:
        draw = random.Random(str(messages)[-2000:])
        own = self.right.get(key_of(tuple(messages), "auto", sampling, ""))
        other = draw.choice(self.samples)
        knows = own is not None and adapter == "auto" and draw.random() < self.skill
        return Completion((own if knows else other).answer)


def evaluate(
    out: Path, n: int, skill: Mapping[str, float] = SKILL, tasks: Iterable[Benchmark] = TASKS
) -> list[dict[str, Any]]:
    """Corpora of n samples of each task, and the answers to them; the rows that come of them."""
    by_corpus: dict[str, dict[str, Sample]] = {}
    for task in tasks:
        samples = [sample(task, i) for i in range(n)]
        by_corpus.setdefault(task.corpus, {}).update({s.id: s for s in samples})
        model = Model(task, samples, skill.get(task.name, 0.9))
        baselines.evaluate(model, task, samples, out / "eval")
    for corpus, rows in by_corpus.items():
        shards.write(out / "data" / corpus / "test", rows.values(), pipeline="p")
        shards.write(out / "data" / corpus / "train", [*rows.values()][:3], pipeline="p")
    return baselines.rescore(out / "eval")


def make_run(out: Path, n: int = 40, steps: int = 300) -> Path:
    """The whole folder."""
    evaluate(out, n)
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
                "lr": rate,
                "from": [stage.start.get("*", "fresh")],
            }
            for i, (glob, rate) in enumerate(stage.trainable.items())
        ]
        manifest = {
            "stage": name, "parents": {p: 3 for p in stage.parents}, "trainable": learned,
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
