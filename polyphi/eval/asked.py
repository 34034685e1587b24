"""What a model was asked and what it answered, on disk as soon as it did, so that nothing is asked twice.

>>> asked = Asked(model, Path("results"), fingerprint="phi bf16 3f9a...")
>>> [answer.text for answer in asked.many([(messages, SamplingParams())])]

Answers are found again by what was asked: the conversation with its media, the sampling, and the model's fingerprint.
They lie in `FOLDER/answers*.jsonl`, one file for each shard of a run that is spread over machines; all are read.
`Recorded` is a model that has nothing but such a folder.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from polyphi.eval.run import dump, key_of
from polyphi.messages import Answers, Completion, Message, SamplingParams
from polyphi.services.endpoint import Rejected

Wanted = tuple[Sequence[Message], SamplingParams]
GREEDY = SamplingParams()
AT_ONCE = 8
"""Requests under way at an endpoint."""


@dataclass(frozen=True)
class Answer:
    """`error` says why a model wouldn't answer (a prompt that is too long, say); the text is empty then. `seconds` is
    its share of the time that the answers took that were asked for together."""

    text: str
    error: str | None = None
    finish_reason: str = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0


class Asked:
    """`fingerprint` names whatever decides about answers: weights and arithmetic, or an endpoint and its model.

    Errors that would befall every request (no endpoint, no key) are raised; those of one request are its answer.
    """

    def __init__(
        self,
        model: Answers,
        folder: Path,
        fingerprint: str,
        *,
        name: str = "answers",
        adapter: str | None = "auto",
    ) -> None:
        self.model, self.fingerprint, self.adapter = model, fingerprint, adapter
        self.path = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.new = 0
        """Answers that the model gave, rather than the disk."""
        self._known = {
            key: answer
            for path in sorted(folder.glob(f"{name.partition('.')[0]}*.jsonl"))
            for key, answer in _read(path)
        }
        self._cut = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")

    def many(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """An answer to each, those that are missing asked for together."""
        keys = [
            key_of(messages, self.adapter, params, self.fingerprint) for messages, params in wanted
        ]
        missing = {k: w for k, w in zip(keys, wanted, strict=True) if k not in self._known}
        if missing:
            began = time.monotonic()
            answers = list(self._answers(list(missing.values())))
            share = (time.monotonic() - began) / len(missing)
            with self.path.open("a", encoding="utf-8") as file:
                if self._cut:
                    file.write("\n")  # the last run was cut in the middle of a line
                    self._cut = False
                for key, given in zip(missing, answers, strict=True):
                    answer = Answer(**{**asdict(given), "seconds": share})
                    self._known[key] = answer
                    file.write(dump({"key": key, **asdict(answer)}))
                self.new += len(missing)
        return [self._known[key] for key in keys]

    def _answers(self, wanted: Sequence[Wanted]) -> Iterator[Answer]:
        together = getattr(self.model, "generate_many", None)
        if together is None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                yield from pool.map(self._one, wanted)
            return
        try:
            found = together(
                [messages for messages, _ in wanted],
                sampling=[params for _, params in wanted],
                adapter=self.adapter,
            )
        except ValueError:  # one of them can't be answered: the others are, one by one
            yield from map(self._one, wanted)
        else:
            yield from map(_answer, found)

    def _one(self, wanted: Wanted) -> Answer:
        messages, params = wanted
        local = hasattr(self.model, "generate_many")
        try:
            return _answer(self.model.generate(messages, sampling=params, adapter=self.adapter))
        except (ValueError, MemoryError) as error:
            if isinstance(error, ValueError) and not local and not isinstance(error, Rejected):
                raise
            return Answer("", error=str(error)[:500], finish_reason="error")


def _answer(given: Completion) -> Answer:
    return Answer(given.text, None, given.finish_reason, len(given.tokens), given.prompt_tokens)


def _read(path: Path) -> Iterator[tuple[str, Answer]]:
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut short
        if isinstance(line, Mapping) and "key" in line:
            yield line["key"], Answer(**{k: v for k, v in line.items() if k != "key"})


class Recorded:
    """A model that knows only what another one answered: the lines of a results folder, by what was asked.

    >>> Recorded(Path("results")).generate(messages).text

    `name` is the lines' that `Asked` kept for another model than the measured one, `fingerprint` that model's.
    """

    def __init__(self, folder: Path, name: str = "answers", fingerprint: str | None = None) -> None:
        paths = sorted(folder.glob(f"{name}*.jsonl"))
        if not paths:
            raise ValueError(
                f"{folder} holds no {name}*.jsonl; expected the --out folder of an earlier evaluation"
            )
        self.folder = folder
        self._known = {key: answer for path in paths for key, answer in _read(path)}
        self.fingerprint = fingerprint or str(
            json.loads((folder / "model.json").read_text())["fingerprint"]
        )

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        found = self._known.get(key_of(messages, adapter, sampling, self.fingerprint))
        if found is None:
            asked = messages[-1].text if messages else ""
            raise ValueError(
                f"{self.folder} has no answer to {asked[:80]!r}; was it asked with other data or settings?"
            )
        if found.error:
            raise Rejected(found.error)
        return Completion(
            found.text, (0,) * found.tokens, found.finish_reason, prompt_tokens=found.prompt_tokens
        )
