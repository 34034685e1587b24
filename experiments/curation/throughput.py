"""Speed of curation with one worker and two, and its memory for ten times as much data:

    python -m experiments.curation.throughput text [--megabytes 1 10] [--workers 1 2]  # MB of UTF-8 per second
    python -m experiments.curation.throughput speech [--clips 200] [--workers 1 2]  # hours of audio per hour

Text: JSON lines of prose in eight languages go through language, rules, quality, personal information, held-out
samples and near duplicates. Speech: flite reads sentences aloud (espeak-ng where there is no flite), with and without
transcription by pocketsphinx. Each run has its own process; its memory is the proportional set size (PSS) of all its
processes, sampled ten times a second.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random

import numpy as np
import psutil
from datatrove.pipeline.base import PipelineStep

from experiments.curation import leaked_items
from experiments.curation import text as curation
from polyphi.data.shards import Sample, Shards
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.dedup.decontaminate import held_out
from polyphi_recipe.dedup.dedup import TEXTS, deduplicate
from polyphi_recipe.filters.language import LanguageFilter
from polyphi_recipe.filters.pii import PiiFilter
from polyphi_recipe.filters.quality import BUCKETS, Classifier, QualityClassifierFilter, save
from polyphi_recipe.filters.rules import QualityRulesFilter
from polyphi_recipe.filters.transcripts import WordErrorRateFilter, pocketsphinx
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.pipeline.corpus import Corpus, Machines, Work
from polyphi_recipe.raw import pages
from polyphi_recipe.synthetic.waves import RATE, encode, resample
from polyphi_recipe.text.lexicon import LANGUAGES

TASKS = 8
ASPECTS = ("educational", "scientific", "toxicity", "obscurity")


def raw(folder: Path, megabytes: float) -> None:
    """Write JSON lines in `TASKS` files and one held-out file: documents of eight random paragraphs of help pages, one
    in twenty repeated."""
    rng = Random(0)
    every = {code: curation.paragraphs(code, 4000) for code in LANGUAGES}
    folder.mkdir(parents=True)
    files = [(folder / f"{n}.jsonl").open("w") for n in range(TASKS)]
    held_out_file, written, line = (folder.parent / "held.jsonl").open("w"), 0, ""
    for number, code in enumerate(cycle(every)):
        if rng.random() > 0.05 or not line:
            text = "\n".join(rng.sample(every[code], 8))
            line = json.dumps({"text": text, "language": code}, ensure_ascii=False) + "\n"
        (held_out_file if number < 200 else files[number % TASKS]).write(line)
        written += len(text.encode())
        if written > megabytes * 1e6:
            break
    for file in (*files, held_out_file):
        file.close()


def documents(work: Work) -> Iterator[tuple[str, Sample]]:
    (split,) = work.rows
    path = work.cache / ("raw" if split == "train" else "held.jsonl")
    part = work.part if split == "train" else (0, 1)
    for sample in pages.read([path], source="benchmark", licence="MIT", part=part):
        yield split, sample


def text_steps(work: Work) -> list[PipelineStep]:
    judged = QualityClassifierFilter(work.cache / "quality", least={"educational": 0.01})
    return [
        LanguageFilter(),
        QualityRulesFilter(),
        judged,
        PiiFilter(),
        *held_out(work, "text", ways=("quoted",)),
    ]


def spoken(work: Work) -> Iterator[tuple[str, Sample]]:
    (split,), (part, of) = work.rows, work.part
    engine, names = (
        ("espeak-ng", ("f2", "m3")) if unavailable("flite") else ("flite", ("slt", "rms"))
    )
    tts_pool, sentences = TTSPool(), leaked_items.manual()
    for i in range(part, work.seed, of):  # the seed is the number of clips
        sentence = " ".join(sentences[i % len(sentences)].split()[:12])
        wave = resample(*tts_pool.speak(sentence, Voice(engine, "en", names[i % 2])))
        messages = (Message.user(Audio(encode(wave)), "Transcribe."), Message.assistant(sentence))
        known = {"language": "en", "engine": engine, "seconds": len(wave) / RATE}
        yield split, Sample(f"{i}", messages, "benchmark", "MIT", known)


def transcript_steps(work: Work) -> list[PipelineStep]:
    return [WordErrorRateFilter(pocketsphinx(), 0.6)]


CORPORA = {
    "text": Corpus(
        "text", documents, steps=text_steps, across=(partial(deduplicate, TEXTS),), tasks=TASKS
    ),
    "spoken": Corpus("spoken", spoken, tasks=TASKS),
    "spoken and transcribed": Corpus("transcribed", spoken, steps=transcript_steps, tasks=TASKS),
}


def build(name: str, work: Work, workers: int) -> None:
    """Build a corpus in this process."""
    corpus.build(CORPORA[name], work, Machines(workers=workers))


def measure(name: str, work: Work, workers: int) -> tuple[float, float]:
    """(seconds, peak in MB) of a process that builds a corpus."""
    process = multiprocessing.get_context("spawn").Process(target=build, args=(name, work, workers))
    started, peak = time.monotonic(), 0
    process.start()
    root = psutil.Process(process.pid)
    while process.is_alive():
        memory = 0
        for one in [root, *_children(root)]:
            try:
                memory += one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue  # the process has ended
        peak = max(peak, memory)
        process.join(0.1)
    if process.exitcode:
        sys.exit(f"the run ended with status {process.exitcode}")
    return time.monotonic() - started, peak / 1e6


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def text(megabytes: list[float], workers: list[int]) -> None:
    # Heads of zeros keep every document, and take as long as trained ones.
    heads = {
        (code, aspect): np.zeros(BUCKETS + 1, np.float32)
        for code in LANGUAGES
        for aspect in ASPECTS
    }
    classifier = Classifier(heads)
    for size in megabytes:
        with tempfile.TemporaryDirectory() as folder:
            save(classifier, Path(folder) / "quality")
            raw(Path(folder) / "raw", size)
            bytes = sum(path.stat().st_size for path in (Path(folder) / "raw").iterdir())
            for n in workers:
                data = Path(folder) / f"data-{n}"
                work = Work({"train": 10**9, "test": 200}, 0, Path(folder), data)
                seconds, peak = measure("text", work, n)
                documents_kept = len(Shards(data / "text" / "train"))
                print(
                    f"text, {bytes / 1e6:.1f} MB, {n} workers: {bytes / 1e6 / seconds:.3f} MB/s in {seconds:.0f} s, "
                    f"peak {peak:.0f} MB, {documents_kept} documents kept",
                    flush=True,
                )


def speech(clips: int, workers: list[int]) -> None:
    for name in ("spoken", "spoken and transcribed"):
        for n in workers:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                work = Work({"train": 10**9}, clips, root, root / "data")
                seconds, peak = measure(name, work, n)
                durations = [
                    s.meta["seconds"] for s in Shards(root / "data" / CORPORA[name].name / "train")
                ]
                audio = sum(durations) * clips / max(1, len(durations))
                print(
                    f"{name}, {clips} clips, {audio / 60:.1f} minutes, {n} workers: {audio / seconds:.0f} hours "
                    f"per hour in {seconds:.0f} s, peak {peak:.0f} MB, {len(durations)} clips kept",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["text", "speech"])
    parser.add_argument("--megabytes", type=float, nargs="*", default=[1.0, 10.0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    args = parser.parse_args()
    if args.what == "text":
        text(args.megabytes, args.workers)
    else:
        speech(args.clips, args.workers)


if __name__ == "__main__":
    main()
