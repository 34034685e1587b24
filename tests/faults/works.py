"""Kinds of work that write files: what each begins with, does, and leaves."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from rich.console import Console

from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.finetuning.run import finetune
from polyphi.hub import pull
from polyphi.runtime import files
from polyphi.runtime.files import sha256
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.preference import DPO
from polyphi.train.stage import Mix
from polyphi.transcription import record
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.raw import feedback
from polyphi_recipe.syntheses.synthesize import synthesize
from tests.core.train import small
from tests.core.train.small import BUDGET, LANGUAGE
from tests.faults.disk import Work
from tests.fixtures import fake_hub, published
from tests.recipe.pipeline import test_pipeline as curation
from tests.recipe.syntheses.test_synthesize import ECHO, sources

UNIMPORTANT = re.compile(r"\.lock$|/\.locks/|/\.run$|/logs/|/\.made/|\.png$|\.html$")
"""Locks, logs and plots for people, and a corpus's records of how it was built."""


@dataclass(frozen=True)
class Kind:
    """`prepare` writes what a folder begins with, `work` is done in it. `contents` reads files, by the end of their
    names, that aren't the same bytes each time, for example with seconds."""

    work: Work
    prepare: Work = lambda folder: None
    read: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)

    def contents(self, folder: Path) -> dict[str, Any]:
        """What is in each file of a folder."""
        names = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
        contents = {}
        for name in names:
            if not UNIMPORTANT.search(f"/{name}"):
                reads = (read for end, read in self.read.items() if name.endswith(end))
                contents[name] = next(reads, sha256)(folder / name)
        return contents


def whole_lines(path: Path) -> list[Any]:
    """The JSON lines of a file, each once and in any order, without those that were cut off."""
    lines = set()
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            lines.add(json.dumps(json.loads(line)))
    return [json.loads(line) for line in sorted(lines)]


def without(*keys: str) -> Callable[[Path], Any]:
    """A reader of JSON objects without some keys."""
    return lambda path: {k: v for k, v in json.loads(path.read_text()).items() if k not in keys}


def unread(path: Path) -> None:
    """A file of which only the existence counts."""


# ---------------------------------------------------------------------------- files themselves


def old_files(folder: Path) -> None:
    write_files(folder, "old")
    (folder / "gone").mkdir()
    (folder / "gone" / "file").write_text("gone")
    (folder / "first").write_text("moved")


def write_files(folder: Path, text: str = "new") -> None:
    files.write_json(folder / "file.json", [text] * 1000)
    with files.whole_folder(folder / "folder") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "one").write_text(text * 1000)
        (partial / text).write_text(text)
    with files.locked(folder / ".lock"):
        log = folder / "log.jsonl"
        if not log.exists() or text not in whole_lines(log):
            files.append(log, json.dumps(text).encode() + b"\n")
        if (folder / "first").exists():
            files.rename(folder / "first", folder / "second")
        files.remove(folder / "gone")


def write_files_without_exchange(folder: Path) -> None:
    """As on a file system that can't exchange two folders."""

    def exchange(source: Path, target: Path) -> bool:
        if not target.exists():
            raise FileNotFoundError
        return False

    files._exchange = exchange
    write_files(folder)


# ---------------------------------------------------------------------------- training


def write_corpora(folder: Path) -> None:
    small.write_corpora(folder / "data")


def trained(stage: Any = LANGUAGE, **options: Any) -> Work:
    """Three steps with a checkpoint after each."""

    def work(folder: Path) -> None:
        if "features" in options:
            options["features"] = folder / "features"
        small.run(
            folder / "out",
            folder / "data",
            stage,
            replace(BUDGET, steps=3),
            checkpoint_seconds=0.0,
            **options,
        )

    return work


def trajectory(path: Path) -> Any:
    return small.trajectory(path.parent)


RUN = {
    "metrics.jsonl": trajectory,
    "out/manifest.json": without("seconds", "peak_memory", "machine"),
    ".bin": unread,
    "features.jsonl": unread,
}
PREFERENCES = replace(LANGUAGE, data=Mix({"questions": 1}), objective=DPO())
FROZEN = replace(
    small.EVERYTHING,
    trainable={n: lr for n, lr in small.EVERYTHING.trainable.items() if ".encoder." not in n},
)


def write_model(folder: Path) -> None:
    published.write(folder / "mini", "mini", torch.float32)
    published.write_data(folder / "data")


def finetuned(folder: Path) -> None:
    stage = replace(
        LANGUAGE,
        trainable={"decoder.*": 1e-3},
        data=Mix({"words": 1}),
        context=200,
        batch_tokens=100,
    )
    finetune(
        stage,
        [f"words={folder / 'data/words.jsonl'}"],
        folder / "run",
        checkpoint=folder / "mini",
        finetuning=FinetuneOptions(steps=2),
        options=TrainOptions(checkpoint_seconds=0.0, precision="fp32"),
        report=lambda _: None,
    )


# ---------------------------------------------------------------------------- checkpoints


def old_export(folder: Path) -> None:
    published.write(folder / "native", "native", torch.float32)
    save_checkpoint(load_checkpoint(folder / "native"), folder / "out")


def exported(folder: Path) -> None:
    model = load_checkpoint(folder / "native")
    save_checkpoint(model, folder / "out", dtype=torch.bfloat16, max_shard_bytes=100_000)


HUB = fake_hub.Hub()
"""Serves while the tests do."""


def pulled(folder: Path) -> None:
    files.cache_folder = lambda: folder / "cache"
    constants.HF_HUB_CACHE = str(folder / "hub")
    pull.pull("owner/mini", quant="int8")


# ---------------------------------------------------------------------------- corpora


def old_corpus(folder: Path) -> None:
    corpus.build(curation.VERSIONED, curation.work(folder, 70))


def new_corpus(folder: Path) -> None:
    corpus.build(curation.VERSIONED, replace(curation.work(folder, 70), seed=1))


def write_rows(folder: Path) -> None:
    rows = [{"question": f"What is after {n}?", "answer": f"{n + 1}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lab.toml").write_text(
        'size = "micro"\n[corpora.x]\nsources = ["rows.jsonl"]\nheld_out = 0.2\n'
        "[stages.text_1_pretrain]\nmix = { x = 1 }\n"
    )


def imported(folder: Path) -> None:
    Run(folder / "lab.toml", folder / "run", console=Console(quiet=True)).build("x")


class Echo:
    """A teacher that answers with what it is told to say."""

    name = "echo"

    def chat(self, messages: Sequence[Message], **_: Any) -> Completion:
        return Completion(text=messages[0].text.removeprefix("Say "), finish_reason="stop")


def synthesized(folder: Path) -> None:
    for sample in synthesize(ECHO, sources(6), Echo(), folder / "work", concurrency=1):
        assert sample.answer


TRANSCRIPTS = {"a.txt": "one two\n", "b.txt": "three\n"}


def write_recordings(folder: Path) -> None:
    for name in TRANSCRIPTS:
        (folder / name).with_suffix(".wav").write_text(name)
        record.write(folder / "out" / name, "with other settings", "", "other")


def transcribed(folder: Path) -> None:
    for name, text in TRANSCRIPTS.items():
        recording, target = (folder / name).with_suffix(".wav"), folder / "out" / name
        lines = record.read(target.parent)[name]
        state = record.state(target, lines, recording, "settings")
        assert state in ("outdated", "current"), f"{target} is {state}"
        if state == "outdated":
            record.write(target, text, sha256(recording), "settings")


def record_findings(folder: Path) -> None:
    row = {"prompt": "How?", "language": "en", "harmful": True, "answered": "So."}
    path = folder / "findings.jsonl"
    if not path.exists() or row not in whole_lines(path):
        feedback.append(path, row)


WORKS = {
    "files": Kind(write_files, read={".jsonl": whole_lines}),
    "files replaced": Kind(write_files, old_files, {".jsonl": whole_lines}),
    "in two renames": Kind(write_files_without_exchange, old_files, {".jsonl": whole_lines}),
    "transcripts": Kind(transcribed, write_recordings, {".jsonl": unread}),
    "findings": Kind(record_findings, read={".jsonl": whole_lines}),
    "answers of a teacher": Kind(synthesized, read={"answers.jsonl": whole_lines}),
    "corpus": Kind(new_corpus, old_corpus),
    "import": Kind(imported, write_rows, {"timings.json": unread}),
    "training": Kind(trained(), write_corpora, RUN),
    "training in the background": Kind(trained(background=True), write_corpora, RUN),
    "preferences": Kind(trained(PREFERENCES), write_corpora, RUN),
    "cached features": Kind(trained(FROZEN, features=True), write_corpora, RUN),
    "fine-tuning": Kind(finetuned, write_model, RUN),
    "export": Kind(exported, old_export),
}
