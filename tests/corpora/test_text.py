"""Every text corpus at a handful of rows, on a machine that can download nothing, as at its poorest."""

import hashlib
import importlib
from pathlib import Path

import pytest

from polyphi.chat import Completion, SamplingParams
from polyphi.curate import sources
from polyphi.curate.corpus import Corpus, Work, build
from polyphi.data.shards import Shards
from polyphi.eval import tasks
from polyphi.eval.task import Task

DOCUMENTS = {"documents", "code", "math", "translation", "long_documents", "reasoning_documents"}
CHATS = {
    "instructions",
    "tools",
    "summaries",
    "fim",
    "preferences",
    "reasoning_sft",
    "reasoning_pairs",
}
NAMES = sorted(DOCUMENTS | CHATS)


def corpus(name: str) -> Corpus:
    return importlib.import_module(f"polyphi.corpora.{name}").corpus


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    def refuse(*_: object) -> None:
        raise sources.Unavailable("no network")

    monkeypatch.setattr(sources, "_fill", refuse)
    return Work(
        {"train": 26, "test": 14}, 0, tmp_path / "cache", tmp_path / "data", tell=lambda line: None
    )


@pytest.mark.parametrize("name", NAMES)
def test_corpus_builds_without_packages(name, work):
    manifests = build(corpus(name), work)
    assert manifests["train"]["rows"] == 26 and manifests["test"]["rows"] >= (
        4 if name == "long_documents" else 14
    )
    for split in ("train", "test"):
        rows = Shards(work.data / name / split)
        assert len({s.id for s in rows}) == len(rows)
        for sample in rows:
            assert sample.messages[-1].role == ("document" if name in DOCUMENTS else "assistant")
            assert sample.answer.strip() and sample.meta["task"] and sample.meta["language"]
            assert sources.SOURCES[sample.source].licence == sample.licence
            if name in ("preferences", "reasoning_pairs"):
                assert sample.meta["rejected"] and sample.meta["rejected"] != sample.answer


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_shards(name, work, tmp_path):
    def digests(folder: str) -> list[str]:
        build(corpus(name), Work(work.rows, 3, work.cache, tmp_path / folder, tell=work.tell))
        return [
            hashlib.sha256(f.read_bytes()).hexdigest()
            for f in sorted((tmp_path / folder).rglob("*.parquet"))
        ]

    assert digests("one") == digests("two")


def test_long_documents_are_long(work):
    build(corpus("long_documents"), work)
    assert min(len(s.answer) for s in Shards(work.data / "long_documents/train")) > 9_000


class _Wrong:
    """A reasoning model that answers everything wrongly, some at a time."""

    def generate_many(self, prompts: list, sampling: SamplingParams) -> list[Completion]:
        assert sampling.temperature > 0 and all(p[-1].role == "user" for p in prompts)
        return [Completion("1 + 1 = 3.\nAnswer: 3") for _ in prompts]


class _Right:
    """One that only says the right solution, one prompt at a time."""

    def __init__(self, solutions: dict[str, str]) -> None:
        self.solutions = solutions

    def generate(self, messages: list, *, sampling: SamplingParams) -> Completion:
        return Completion(self.solutions[messages[-1].text])


def test_reasoning_pairs_come_from_the_models_errors(work):
    def rows(model: object) -> list:
        made = Work(work.rows, 0, work.cache, work.data, {"reasoning_2_sft": model}, work.tell)
        return [
            sample for split, sample in corpus("reasoning_pairs").build(made) if split == "train"
        ]

    wrong = rows(_Wrong())
    assert [s.meta["rejected_by"] for s in wrong] == ["model"] * 13 + ["rule"] * 13
    assert wrong[0].meta["rejected"] == "1 + 1 = 3.\nAnswer: 3"
    right = rows(_Right({s.messages[0].text: s.answer for s in wrong}))
    assert [s.answer for s in right] == [s.answer for s in wrong]
    assert {s.meta["rejected_by"] for s in right} == {"rule"}


def text_tasks() -> list[Task]:
    root = Path(tasks.__file__).parent
    found = []
    for folder in ("text", "safety"):
        for file in sorted((root / folder).glob("*.py")):
            module = importlib.import_module(f"polyphi.eval.tasks.{folder}.{file.stem}")
            if task := getattr(module, "task", None):
                found.append(task)
    return [task for task in found if task.corpus in NAMES]


def test_references_of_every_task_score_fully(work):
    seen = set()
    for task in text_tasks():
        if task.corpus not in seen:
            build(
                corpus(task.corpus),
                Work({"train": 1, "test": 80}, 0, work.cache, work.data, tell=work.tell),
            )
            seen.add(task.corpus)
        rows = [
            s
            for s in Shards(work.data / task.corpus / "test")
            if s.meta.items() >= dict(task.only).items()
        ]
        assert rows, task.name
        assert all(task.scorer(s.answer, s).value == 1.0 for s in rows), task.name
        assert not any(
            task.scorer("", s).value for s in rows if task.name not in ("overrefusal", "tool_call")
        )
