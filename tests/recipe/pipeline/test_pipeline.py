"""Corpora by datatrove: deterministic shards under interruption, dropped documents are recorded with reasons."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import multiprocess.managers
import multiprocess.util
import psutil
import pytest
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.data.shards import Sample, Shards, document
from polyphi.runtime.files import sha256
from polyphi_recipe.corpora import cards, charts, copying, tools, vision_speech
from polyphi_recipe.dedup.decontaminate import held_out
from polyphi_recipe.dedup.dedup import EXACT, TEXTS, deduplicate
from polyphi_recipe.pipeline import corpus, pipeline
from polyphi_recipe.pipeline.corpus import Corpus, Machines, Work
from polyphi_recipe.pipeline.documents import note
from polyphi_recipe.raw import pages
from tests.fixtures import forked
from tests.fixtures.variants import few


def work(folder: Path, rows: int = 60) -> Work:
    return Work({"train": rows, "test": rows // 4}, 0, folder / "cache", folder / "data", {}, print)


def hashes(folder: Path, name: str) -> dict[str, list[str]]:
    manifests = sorted((folder / "data" / name).glob("*/manifest.json"))
    return {
        m.parent.name: [s["sha256"] for s in json.loads(m.read_text())["shards"]] for m in manifests
    }


def near(work: Work) -> Iterator[tuple[str, Sample]]:
    """Part 0 has eight texts, part 1 the same with one changed word and two more; one text is in both splits."""
    (split,), (part, _) = work.rows, work.part
    for i in range(10 if part else 8):
        text = " ".join(
            random.Random(i if split == "train" or i == 3 else i + 100).choices(WORDS, k=200)
        )
        licence = "MIT" if part else ""
        yield split, document(f"{split}-{part}-{i}", text + " changed" * part, "here", licence)


WORDS = [f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mu") for b in ("na", "re", "si", "to", "vu")]
NEAR = Corpus(
    "near",
    near,
    steps=lambda work: [*held_out(work, "near", ways=("quoted",))],
    across=(partial(deduplicate, TEXTS),),
    spare=0.5,
    tasks=2,
)


def test_held_out_samples_and_duplicates_across_tasks_are_removed_from_training(
    tmp_path: Path,
) -> None:
    here = work(tmp_path, 20)
    corpus.build(NEAR, here)
    folder = here.data / "near"
    ids = [s.id for s in Shards(folder / "train")]
    own = {s.id.rpartition("-")[2] for s in Shards(folder / "train")}
    assert len(ids) == 9 and own == {str(i) for i in range(10) if i != 3}
    assert len(Shards(folder / "test")) == 5
    card = cards.card(folder)
    assert (
        "dropped_known text 2" in card and "Duplicates-0: total 16, forwarded 9, dropped 7" in card
    )
    assert "- under MIT: " in card and "- without a licence: " in card and "under :" not in card
    assert "dropped by Decontamination: known text" in cards.explain(folder, "train-0-3")
    pairs = [(f"train-0-{i}", f"train-1-{i}") for i in range(8) if i != 3]
    assert all((one in ids) != (other in ids) for one, other in pairs)
    dropped = next(id for pair in pairs for id in pair if id not in ids)
    assert "dropped by Duplicates-0" in cards.explain(folder, dropped)
    with pytest.raises(ValueError, match=r"near .*instructions"):
        held_out(replace(here, rows={"train": 1}), "near", "instructions")


def test_spare_samples_fill_up_to_the_requested_rows(tmp_path: Path) -> None:
    here = Work({"train": 8}, 0, tmp_path, tmp_path / "data", report=print)
    corpus.build(Corpus("spared", numbers, steps=even, spare=1.0), here)
    assert [s.id for s in Shards(here.data / "spared" / "train")] == [
        str(i) for i in range(0, 16, 2)
    ]


class Even(BaseFilter):
    """Keeps samples with an even number."""

    name = "Even"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        note(doc, "even", number=int(doc.id))
        return int(doc.id) % 2 == 0 or (False, "odd")


def numbers(work: Work) -> Iterator[tuple[str, Sample]]:
    for split in work.rows:
        for i in range(20):
            yield split, document(str(i), f"number {i}", "here", "MIT")


def even(work: Work) -> list[PipelineStep]:
    return [Even()]


def parts(work: Work) -> Iterator[tuple[str, Sample]]:
    (split,), (part, of) = work.rows, work.part
    for i in range(part, 20, of):
        yield split, document(str(i), f"number {i}", "here", "MIT")


NUMBERS = Corpus("numbers", numbers, steps=even)


def test_more_workers_make_the_same_shards(tmp_path: Path) -> None:
    for workers in (1, 2):
        corpus.build(copying.corpus, work(tmp_path / str(workers)), Machines(workers=workers))
    one, two = (hashes(tmp_path / n, "copying") for n in ("1", "2"))
    assert one == two and set(one) == {"train", "test"}


@pytest.mark.parametrize("workers", few([1, 2], 1))
def test_tasks_make_parts_that_are_joined_in_order(workers: int, tmp_path: Path) -> None:
    here = work(tmp_path, 20)
    manifests = corpus.build(Corpus("parts", parts, tasks=3), here, Machines(workers=workers))
    ids = [int(s.id) for s in Shards(here.data / "parts" / "train")]
    assert ids == [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
    assert manifests["train"]["sources"] == {"here": 20}
    Shards(here.data / "parts" / "train").verify(samples=True)
    assert len(Shards(here.data / "parts" / "test")) == 5


def test_a_pipeline_writes_the_samples_of_the_recipe(tmp_path: Path) -> None:
    here = work(tmp_path)
    corpus.build(charts.corpus, here)
    whole = [sample for split, sample in charts.corpus.build(here) if split == "train"]
    assert list(Shards(here.data / "charts" / "train")) == whole


def test_dropped_samples_are_stored_with_the_reason(tmp_path: Path) -> None:
    here = work(tmp_path, 20)
    corpus.build(NUMBERS, here)
    folder = here.data / "numbers"
    samples = list(Shards(folder / "train"))
    assert [s.id for s in samples] == [str(i) for i in range(0, 20, 2)]
    assert samples[1].meta["lineage"] == [{"step": "even", "number": 2}]
    print_ = corpus.fingerprint(NUMBERS, here)
    reader, steps, written = pipeline.counts(folder / "train", print_)
    assert (reader["documents"], written["documents"]) == (20, 10)
    assert (steps["total"], steps["forwarded"], steps["dropped_odd"]) == (20, 10, 10)
    card = cards.card(folder)
    assert "from here: 10 rows" in card and "dropped_odd 10" in card and "dropped_odd 2" in card
    assert "in train" in cards.explain(folder, "8") and "'number': 8" in cards.explain(folder, "8")
    assert "dropped by Even: odd" in cards.explain(folder, "3")
    with pytest.raises(ValueError, match="no sample '99'"):
        cards.explain(folder, "99")


def test_a_finished_split_is_left_alone_and_a_lost_one_is_made_again(tmp_path: Path) -> None:
    here = work(tmp_path)
    corpus.build(copying.corpus, here)
    before = hashes(tmp_path, "copying")
    train, test = (here.data / "copying" / split / "manifest.json" for split in ("train", "test"))
    first = train.stat().st_mtime_ns
    test.unlink()
    assert not corpus.is_built(copying.corpus, here)
    corpus.build(copying.corpus, here)
    assert train.stat().st_mtime_ns == first and hashes(tmp_path, "copying") == before


def test_a_changed_recipe_is_made_anew(tmp_path: Path) -> None:
    corpus.build(copying.corpus, work(tmp_path))
    before = hashes(tmp_path, "copying")
    corpus.build(copying.corpus, replace(work(tmp_path), seed=1))
    after = hashes(tmp_path, "copying")
    assert all(before[split] != after[split] for split in before)


def test_a_child_is_made_anew_when_its_parent_was(tmp_path: Path) -> None:
    child = Corpus("child", numbers, corpora=("copying",))
    here = work(tmp_path)
    corpus.build(copying.corpus, here)
    corpus.build(child, here)
    assert corpus.is_built(child, here)
    corpus.build(copying.corpus, replace(here, seed=1))
    assert not corpus.is_built(child, here)
    manifests = corpus.build(child, here)
    assert corpus.is_built(child, here) and manifests["train"]["parents"]


def test_a_changed_input_file_makes_a_corpus_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that a reader reads, and `files` that don't exist at first; also after an interrupt while what was built
    from the old ones is removed."""
    here, raw, later = work(tmp_path, 20), tmp_path / "raw", tmp_path / "later.txt"
    raw.mkdir()
    (raw / "a.txt").write_text("Version 0.")

    def build(work: Work) -> Iterator[tuple[str, Sample]]:
        (split,) = work.rows
        return ((split, s) for s in pages.read([raw], source="here", licence="MIT"))

    reading = Corpus("reading", build, steps=lambda work: [Keep()], files=(later,))

    def texts() -> list[str]:
        return [s.answer for s in Shards(here.data / "reading" / "train")]

    corpus.build(reading, here)
    assert corpus.is_built(reading, here) and texts() == ["Version 0."]
    os.utime(raw / "a.txt", (1, 1))
    assert corpus.is_built(reading, here)
    later.write_text("It is here now.")
    assert not corpus.is_built(reading, here)
    corpus.build(reading, here)
    assert corpus.is_built(reading, here)
    unlink, interrupts = Path.unlink, 0
    for version in range(
        1, 5
    ):  # the first interrupt before anything is removed, the next ones later
        (raw / "a.txt").write_text(f"Version {version}.")
        remaining = version - 1

        def stop(path: Path, **options: Any) -> None:
            nonlocal remaining
            if ".made" in path.parts and (remaining := remaining - 1) < 0:
                raise KeyboardInterrupt
            unlink(path, **options)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "unlink", stop)
            corpus.build(reading, here)
        interrupts += texts() != [f"Version {version}."]
        assert corpus.is_built(reading, here) == (texts() == [f"Version {version}."])
        corpus.build(reading, here)
        assert corpus.is_built(reading, here) and texts() == [f"Version {version}."]
    assert interrupts >= 2


class Keep(BaseFilter):
    """Keeps everything."""

    name = "Keep"

    def filter(self, doc: Document) -> bool:
        return True


def test_a_corpus_is_what_its_code_imports() -> None:
    names = {path.stem for path in corpus.imported(Path(copying.__file__))}
    assert names >= {"copying", "corpus", "pipeline", "documents", "real_text", "lexicon"}
    assert not names & {"dedup", "speech", "image_qa", "endpoint"}
    assert "image_qa" in {p.stem for p in corpus.imported(Path(vision_speech.__file__))}


def test_another_word_in_a_data_file_is_another_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, read_text = work(tmp_path), Path.read_text
    corpus.build(copying.corpus, here)
    assert corpus.is_built(copying.corpus, here)

    def with_another_word(path: Path, *arguments: Any, **options: Any) -> str:
        text = read_text(path, *arguments, **options)
        return text.replace("rouge", "cramoisi") if path.name == "lexicon.json" else text

    monkeypatch.setattr(Path, "read_text", with_another_word)
    assert not corpus.is_built(copying.corpus, here)


@pytest.mark.long
@pytest.mark.parametrize(("module", "workers"), [(copying, 1), (copying, 2), (tools, 2)])
def test_killed_anywhere_it_makes_the_same_shards(
    module: ModuleType, workers: int, tmp_path: Path
) -> None:
    """Two kills when a part was just begun, and four at random times after that, with increasing delays. `tools` is
    checked against its held-out split, and deduplicated across its parts."""
    name, rows = module.corpus.name, ROWS[module.corpus.name]
    corpus.build(module.corpus, work(tmp_path / "whole", rows))
    script = (
        f"import sys; from pathlib import Path; from tests.recipe.pipeline.test_pipeline import *; "
        f"corpus.build({name}.corpus, "
        f"work(Path(sys.argv[1]), {rows}), Machines(workers=int(sys.argv[2])))"
    )
    command = (script, str(tmp_path / "out"), str(workers))
    folder = tmp_path / "out" / "data" / name
    chance, cut = random.Random(workers), 0
    for latest in (0.0, 0.0, 0.6, 0.6, 3.0, 3.0):
        begun = time.time()
        process = forked.start(*command)
        while process.exitcode is None and not _partial(folder, begun):
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, latest))
        with contextlib.suppress(ProcessLookupError):  # it had already ended
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        cut += bool(_partial(folder, begun))
    assert cut >= 2
    process = forked.start(*command)
    process.join(120)
    assert process.exitcode == 0
    result, expected = hashes(tmp_path / "out", name), hashes(tmp_path / "whole", name)
    assert result == expected and set(result) == {"train", "test"}


ROWS = {"copying": 24_000, "tools": 4_000}  # a few seconds each


def versioned(work: Work) -> Iterator[tuple[str, Sample]]:
    """Texts that depend on the seed; every fifth one is held out, and every seventh a copy of the one before."""
    (split,), (part, of) = work.rows, work.part
    for i in range(part, 70, of):
        number = i - (i % 7 == 0)
        words = random.Random(number if i % 5 == 0 else f"{split} {number} {work.seed}")
        yield split, document(f"{split}-{i}", " ".join(words.choices(WORDS, k=60)), "here", "MIT")


VERSIONED = Corpus(
    "versioned",
    versioned,
    steps=lambda work: [*held_out(work, "versioned", ways=("quoted",))],
    across=(partial(deduplicate, EXACT),),
    tasks=2,
)


@pytest.mark.parametrize("kills", few([1, 50], 1))
def test_killed_at_any_moment_it_leaves_the_old_or_the_new_corpus(
    kills: int, tmp_path: Path
) -> None:
    """Two versions replace each other: after a kill each split is that of one of them, byte for byte; the same command
    resumes and ends in the new one. Other files in the folder stay."""
    script = (
        "import sys; from pathlib import Path; from tests.recipe.pipeline.test_pipeline import *; "
        "corpus.build(VERSIONED, "
        "replace(work(Path(sys.argv[1]), 70), seed=int(sys.argv[2])))"
    )

    def files(out: Path, split: str) -> dict[str, str]:
        folder = out / "data" / "versioned" / split
        return {p.name: sha256(p) for p in sorted(folder.iterdir())}

    out, seconds = tmp_path / "out", 0.0
    versions: list[dict[str, dict[str, str]]] = []
    for seed in (0, 1):
        begun = time.monotonic()
        process = forked.start(script, str(tmp_path / str(seed)), str(seed))
        process.join()
        seconds = time.monotonic() - begun
        versions.append({s: files(tmp_path / str(seed), s) for s in ("train", "test")})
    assert all(versions[0][split] != versions[1][split] for split in versions[0])
    shutil.copytree(tmp_path / "0", out)
    others = [out / "data" / "notes.txt", out / "data" / "versioned" / "train-notes" / "a.txt"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    chance, new, interrupted = random.Random(kills), 1, 0
    for _ in range(kills):
        process = forked.start(script, str(out), str(new))
        process.join(chance.uniform(0, seconds))
        killed = process.exitcode is None
        with contextlib.suppress(ProcessLookupError):  # it had already ended, or has not begun
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        interrupted += killed
        for split in ("train", "test"):
            assert files(out, split) in [version[split] for version in versions]
        assert [path.read_text() for path in others] == [path.name for path in others]
        if not killed:
            assert {split: files(out, split) for split in ("train", "test")} == versions[new]
            new = 1 - new
    assert interrupted >= kills / 3
    process = forked.start(script, str(out), str(new))
    process.join(120)
    assert process.exitcode == 0
    assert {split: files(out, split) for split in ("train", "test")} == versions[new]
    assert [path.read_text() for path in others] == [path.name for path in others]


def _partial(folder: Path, begun: float) -> list[Path]:
    """Return the unfinished parts that were begun since `begun`."""
    paths = []
    for path in folder.rglob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # finished in the meantime
            paths += [path] * (path.stat().st_mtime > begun)
    return paths


def test_an_interrupt_at_the_start_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit would wait for it for ever."""
    finalize = multiprocess.util.Finalize

    def interrupted(of: object, *arguments: Any, **options: Any) -> object:
        if isinstance(of, multiprocess.managers.BaseManager):  # it has started
            raise KeyboardInterrupt
        return finalize(of, *arguments, **options)

    monkeypatch.setattr(multiprocess.util, "Finalize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        corpus.build(Corpus("numbers", numbers), work(tmp_path))
    assert not multiprocess.active_children()


def waits(work: Work) -> Iterator[tuple[str, Sample]]:
    yield next(numbers(work))
    (work.data / "begun").touch()
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_leaves_no_process(workers: int, tmp_path: Path) -> None:
    """With one worker, as in all of the recipe, and with several."""
    process = forked.start(
        "import sys; from pathlib import Path; from tests.recipe.pipeline.test_pipeline import *; "
        "corpus.build(Corpus('waits', waits), work(Path(sys.argv[1])), Machines(workers=int(sys.argv[2])))",
        str(tmp_path),
        str(workers),
    )
    while process.is_alive() and not (tmp_path / "data" / "begun").exists():
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert children
    deadline = time.monotonic() + 20
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if _runs(child)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may wait for an orphan
    except psutil.NoSuchProcess:
        return False


def test_slurm_needs_partition_and_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="partition and time: --slurm partition=NAME"):
        corpus.build(copying.corpus, work(tmp_path), Machines("slurm"))


def test_slurm_needs_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    options = {"partition": "cpu", "time": "00:10:00"}
    with pytest.raises(ValueError, match="expected Slurm's sbatch on the PATH"):
        corpus.build(copying.corpus, work(tmp_path), Machines("slurm", 1, options))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("sinfo") is None, reason="no Slurm here")
def test_slurm_makes_the_same_shards(tmp_path: Path) -> None:
    """Jobs are submitted once, however often `build` is called, and their parts are joined. One node suffices."""
    sinfo = subprocess.run(["sinfo", "-h", "-o", "%R"], check=False, capture_output=True, text=True)
    if not (partitions := sinfo.stdout.split()):
        pytest.skip("no Slurm partition is up")
    machines = Machines("slurm", 2, {"partition": partitions[0], "time": "00:10:00"})
    corpus.build(copying.corpus, work(tmp_path / "local"))
    assert corpus.build(copying.corpus, work(tmp_path / "slurm"), machines) == {}
    deadline = time.monotonic() + 120
    # First the held-out split, then the training split that is checked against it.
    while "train" not in (
        manifests := corpus.build(copying.corpus, work(tmp_path / "slurm"), machines)
    ):
        assert time.monotonic() < deadline, "the jobs haven't ended"
        subprocess.run(["sleep", "5"], check=True)
    assert manifests["train"]["rows"]
    assert hashes(tmp_path / "slurm", "copying") == hashes(tmp_path / "local", "copying")


@pytest.mark.long
@pytest.mark.parametrize("module", [copying, tools])
def test_ray_makes_the_same_shards(module: ModuleType, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False)
    try:
        for name, machines in (("local", Machines()), ("ray", Machines("ray", workers=2))):
            corpus.build(module.corpus, work(tmp_path / name, 400), machines)
    finally:
        ray.shutdown()
    result = hashes(tmp_path / "ray", module.corpus.name)
    assert result == hashes(tmp_path / "local", module.corpus.name) and set(result) == {
        "train",
        "test",
    }
