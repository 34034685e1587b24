"""Samples -> lines: every sample's prompt and the model's answers, not yet scored.

>>> cache = Cache(model, out, fingerprint)
>>> lines = answer(benchmark, prompts_of(benchmark, data), cache)
>>> write(out / file_name(benchmark.name), lines)

A line has everything that scoring needs, so that it can be scored again without model or data (score.py). Each batch
of answers is written to disk at once (cache.py), so that an interrupted run resumes. `Prompt.condition` is "with" for
a benchmark's prompts; the others are those of baselines (baselines.py).
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.runtime.files import write_whole
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_eval.benchmark import Benchmark, belongs, in_rows
from polyphi_eval.cache import Cache, CachedAnswer, CachedRequest, as_text, media_hashes
from polyphi_eval.services.response_cache import dump
from polyphi_eval.sources import Data
from polyphi_eval.spoken import audio_only, text_only

BLOCK = 64
"""Samples whose prompts are sent and whose media are in memory at a time."""
SavedLine = dict[str, Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class SamplePrompt:
    """The prompt of a sample: `messages`, or None for the benchmark's turns."""

    sample: Sample
    condition: str = "with"
    messages: tuple[Message, ...] | None = None
    adapter: str | None = "auto"


def prompts_of(
    benchmark: Benchmark, data: Data, *, limit: int | None = None, shard: tuple[int, int] = (1, 1)
) -> Iterator[SamplePrompt]:
    """Yield prompts of the samples that belong to a row. `limit` selects the first samples of each row; `shard` (i, k)
    every k-th sample from the i-th on."""
    samples: Iterable[Sample] = in_rows(benchmark, benchmark.load(data))
    if limit is not None:
        samples = _first(benchmark, samples, limit)
    return (SamplePrompt(s) for i, s in enumerate(samples) if i % shard[1] == shard[0] - 1)


def _first(benchmark: Benchmark, samples: Iterable[Sample], limit: int) -> Iterator[Sample]:
    counts: Counter[int] = Counter()
    for sample in samples:
        rows = [i for i, row in enumerate(benchmark.rows) if belongs(sample.meta, row.only)]
        if any(counts[i] < limit for i in rows):
            counts.update(rows)
            yield sample
        elif all(counts[i] >= limit for i in range(len(benchmark.rows))):
            return


def answer(
    benchmark: Benchmark,
    prompts: Iterable[SamplePrompt],
    cache: Cache,
    *,
    block: int = BLOCK,
    progress: Progress = lambda done: None,
) -> list[SavedLine]:
    """Return a line with the answers for each prompt. Raises ValueError if there are no prompts."""
    prompts, lines = iter(prompts), list[SavedLine]()
    while group := list(islice(prompts, block)):
        turns = _answer_block(benchmark, group, cache)
        lines += [_line(benchmark, p, t) for p, t in zip(group, turns, strict=True)]
        progress(len(lines))
    if not lines:
        raise ValueError(
            f"{benchmark.name}: expected samples that belong to one of its rows, found none in its data"
        )
    return lines


Turns = list[tuple[Sequence[Message], CachedAnswer]]


def _answer_block(
    benchmark: Benchmark, prompts: Sequence[SamplePrompt], cache: Cache
) -> list[Turns]:
    """Return the conversations and answers of each prompt, turn by turn."""
    turns: list[Turns] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while active:
        following = _next_turns(
            benchmark, [(prompts[i], [a.text for _, a in turns[i]]) for i in active]
        )
        conversations = {i: m for i, m in zip(active, following, strict=True) if m is not None}
        answers = cache.answers(
            [
                CachedRequest(
                    audio_only(messages), benchmark.params(prompts[i].sample), prompts[i].adapter
                )
                for i, messages in conversations.items()
            ]
        )
        for (i, messages), reply in zip(conversations.items(), answers, strict=True):
            turns[i].append((list(messages), reply))
        active = [i for i, reply in zip(conversations, answers, strict=True) if reply.error is None]
    return turns


def _next_turns(
    benchmark: Benchmark, progress: Sequence[tuple[SamplePrompt, Sequence[str]]]
) -> Sequence[Sequence[Message] | None]:
    if benchmark.turns:
        return benchmark.turns([(prompt.sample, answers) for prompt, answers in progress])
    return [
        benchmark.turn(prompt.sample, answers)
        if prompt.messages is None
        else (None if answers else prompt.messages)
        for prompt, answers in progress
    ]


def _line(benchmark: Benchmark, prompt: SamplePrompt, turns: Turns) -> SavedLine:
    sample, answers = prompt.sample, [reply for _, reply in turns]
    last: Sequence[Message] = audio_only(turns[-1][0]) if turns else ()
    line = {
        "task" if benchmark.corpus else "benchmark": benchmark.name,
        "id": sample.id,
        "prompt": as_text(last),
        "media": media_hashes(last),
        "answer": answers[-1].text if answers else "",
        "reference": sample.answer,
        "meta": sample.meta,
        "source": sample.source,
        "licence": sample.licence,
    }
    if benchmark.corpus:
        return line | {
            "condition": prompt.condition,
            "title": benchmark.title,
            "modality": benchmark.modality,
            "metric": benchmark.metric,
            "corpus": benchmark.corpus,
            "note": benchmark.note,
            "key": answers[-1].key if answers else "",
        }
    return line | {
        "asked": [as_text(text_only(messages[-1:])) for messages, _ in turns],
        "settings": asdict(benchmark.params(sample)),
        "answers": [reply.text for reply in answers],
        "error": next((reply.error for reply in answers if reply.error), None),
        "cut": any(reply.finish_reason == "length" for reply in answers),
        "seconds": sum(reply.seconds for reply in answers),
        "sound_seconds": _sound_seconds(last),
    }


def constant_line(benchmark: Benchmark, prompt: SamplePrompt, text: str) -> SavedLine:
    """Return the line of a constant answer."""
    return _line(benchmark, prompt, [(prompt.sample.prompt, CachedAnswer(text))])


def _sound_seconds(messages: Sequence[Message]) -> float:
    """Return the seconds of audio in a conversation."""
    import soundfile

    total = 0.0
    for part in (p for m in messages for p in m.parts if isinstance(p, Audio)):
        if isinstance(part.source, tuple):
            samples, rate = part.source
            total += len(samples) / rate
            continue
        file = io.BytesIO(part.source) if isinstance(part.source, bytes) else str(part.source)
        try:
            total += soundfile.info(file).duration
        except soundfile.SoundFileError:
            continue  # the line has the model's error
    return total


# ---------------------------------------------------------------------- files


def file_name(benchmark: str, shard: tuple[int, int] = (1, 1)) -> str:
    return (
        f"{benchmark}.jsonl" if shard == (1, 1) else f"{benchmark}.{shard[0]}-of-{shard[1]}.jsonl"
    )


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a results file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(map(dump, lines)))


def read(path: Path) -> list[SavedLine]:
    """Return the lines of a results file. Raises ValueError for a line that isn't JSON: these files are written
    atomically, so the file is damaged."""
    lines = []
    # Not splitlines(), which also splits at other characters than "\n"; answers may contain them.
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if text:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                raise ValueError(
                    f"{path}: expected JSON, found something else in line {number}; delete the file and run again"
                ) from None
    return lines
