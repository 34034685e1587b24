"""Every text corpus with a few rows, on a machine without network."""

import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from polyphi.data.shards import Shards
from polyphi.types.completion import Completion
from polyphi.types.sampling import SamplingParams
from polyphi_eval.baselines import select
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.heldout import find
from polyphi_recipe.pipeline.corpus import Corpus, Work, build
from polyphi_recipe.raw import packages
from polyphi_recipe.stages.sizes import MICRO, NANO
from tests.fixtures.variants import few

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
    return importlib.import_module(f"polyphi_recipe.corpora.{name}").corpus


def build_with_parents(name: str, work: Work) -> dict:
    """Build a corpus after its parents; of long documents few."""
    for parent in corpus(name).corpora:
        build_with_parents(parent, work)
    if name == "long_documents":
        work = replace(work, rows={"train": 8, "test": 4})
    return build(corpus(name), work)


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise packages.Unavailable("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_fill", refuse)
        yield


def in_folder(folder: Path) -> Work:
    return Work(
        {"train": 26, "test": 14}, 0, folder / "cache", folder / "data", report=lambda line: None
    )


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return in_folder(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Return a folder for tests that only read the corpora: each is built once, with its parents."""
    return in_folder(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Return another folder, in which every corpus is built a second time."""
    return in_folder(tmp_path_factory.mktemp("again"))


def manifests_of(name: str, work: Work) -> dict[str, dict]:
    build_with_parents(name, work)
    folders = {split: work.data / name / split for split in work.rows}
    return {s: json.loads((path / "manifest.json").read_text()) for s, path in folders.items()}


@pytest.mark.parametrize("name", NAMES)
def test_corpus_builds_without_packages(name, shared):
    manifests, work = manifests_of(name, shared), shared
    rows = {split: manifest["rows"] for split, manifest in manifests.items()}
    is_long = name == "long_documents"
    assert rows["train"] == (8 if is_long else 26) and rows["test"] >= (4 if is_long else 14)
    for split in ("train", "test"):
        rows = Shards(work.data / name / split)
        assert len({s.id for s in rows}) == len(rows)
        for sample in rows:
            assert sample.messages[-1].role == ("document" if name in DOCUMENTS else "assistant")
            assert sample.answer.strip() and sample.meta["task"] and sample.meta["language"]
            assert packages.SOURCES[sample.source].licence == sample.licence
            if name in ("preferences", "reasoning_pairs"):
                assert sample.meta["rejected"] and sample.meta["rejected"] != sample.answer


@pytest.mark.parametrize("name", few(NAMES, lambda name: name in ("instructions", "preferences")))
def test_same_seed_same_shards(name, shared, again):
    """Parents are rebuilt as well."""

    def digests(work: Work) -> list[str]:
        build_with_parents(name, work)
        return [
            hashlib.sha256(f.read_bytes()).hexdigest()
            for f in sorted((work.data / name).rglob("*.parquet"))
        ]

    assert digests(again) == digests(shared) != []


def test_long_documents_are_long(shared):
    build_with_parents("long_documents", shared)
    assert min(len(s.answer) for s in Shards(shared.data / "long_documents/train")) > 9_000


class _Wrong:
    """A reasoning model with batched requests whose answers are all wrong."""

    def __init__(self) -> None:
        self.requests: list[tuple] = []

    def generate_many(self, prompts: list, sampling: list[SamplingParams]) -> list[Completion]:
        assert all(s.temperature > 0 for s in sampling)
        assert all(p[-1].role == "user" for p in prompts)
        self.requests += [(tuple(p), s.seed) for p, s in zip(prompts, sampling, strict=True)]
        return [Completion("1 + 1 = 3.\nAnswer: 3") for _ in prompts]


class _Learns(_Wrong):
    """A model whose first answers are wrong; the second answer is right for every other problem."""

    def __init__(self, solutions: dict[str, str]) -> None:
        super().__init__()
        self.solutions = solutions

    def generate_many(self, prompts: list, sampling: list[SamplingParams]) -> list[Completion]:
        answers = super().generate_many(prompts, sampling)
        return [
            Completion(self.solutions[p[0].text]) if len(p) > 1 and i % 2 else answer
            for i, (p, answer) in enumerate(zip(prompts, answers, strict=True))
        ]


class _Right:
    """A model without batching that always returns the right solution."""

    def __init__(self, solutions: dict[str, str]) -> None:
        self.solutions = solutions

    def generate(self, messages: list, *, sampling: SamplingParams) -> Completion:
        return Completion(self.solutions[messages[-1].text])


def test_reasoning_pairs_come_from_the_models_errors(work):
    def rows(model: object) -> list:
        workspace = Work(
            work.rows, 0, work.cache, work.data, {"reasoning_2_sft": model}, work.report
        )
        return [
            sample
            for split, sample in corpus("reasoning_pairs").build(workspace)
            if split == "train"
        ]

    model = _Wrong()
    wrong = rows(model)
    assert [len(p) for p, _ in model.requests] == [1] * 3 + [3] * 3 + [1] * 10, (
        "a quarter is fed back"
    )
    assert len({seed for _, seed in model.requests}) == 16
    for size, lengths in ((MICRO, {1}), (NANO, {1, 3})):
        limited = _Wrong()
        limited.config = size.model
        rows(limited)
        assert {len(p) for p, _ in limited.requests} == lengths, "where the context suffices"
    assert [s.meta["rejected_by"] for s in wrong] == ["model"] * 13 + ["rule"] * 13
    assert wrong[0].meta["rejected"] == "1 + 1 = 3.\nAnswer: 3"
    assert {s.meta.get("paired_by") for s in wrong[:13]} == {"known"}
    solutions = {s.messages[0].text: s.answer for s in wrong}
    learns = rows(_Learns(solutions))[:13]
    assert [s.meta["paired_by"] for s in learns] == ["known", "correction", *["known"] * 11]
    assert [s.answer for s in learns] == [s.answer for s in wrong[:13]]
    right = rows(_Right(solutions))
    assert [s.answer for s in right] == [s.answer for s in wrong]
    assert {s.meta["rejected_by"] for s in right} == {"rule"}


def text_tasks() -> list[Benchmark]:
    return [t for t in find() if t.modality in ("text", "safety") and t.corpus in NAMES]


@pytest.mark.parametrize("count", few([30, 80], 1))
def test_references_of_every_task_score_fully(work, count):
    work = replace(work, rows={"train": 1, "test": count})
    for name in {task.corpus for task in text_tasks()}:
        build_with_parents(name, work)
    for task in text_tasks():
        rows = select(task, Shards(work.data / task.corpus / "test"), None, 0)
        assert rows, task.name
        assert all(task.scorer(s.answer, s).value == 1.0 for s in rows), task.name
        may_be_silent = ("overrefusal", "refusals", "tool_call")  # where silence may be right
        assert not any(task.scorer("", s).value for s in rows if task.name not in may_be_silent)
