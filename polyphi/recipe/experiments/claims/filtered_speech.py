"""C9: synthetic speech that a recogniser understands trains better than unfiltered (report 3.3, 3.4).

polyphi claims C9 --out runs/nano
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean

from polyphi import stages
from polyphi.corpora import vision_speech
from polyphi.corpora.vision_speech import SpokenQuestion
from polyphi.data import shards
from polyphi.recipe.experiments.claims.claim import Claim, Effect, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Laboratory
from polyphi.synthetic.speech import TTSSampler, numbered
from polyphi.text.normalization import wer

STAGE, TASK = "joint_1_vision_speech", "spoken_question"
SHARE = 0.4  # of the stage's steps
VOICES = 6  # clips of each question; half of them are used
ROWS = 2000


def clips(lab: Laboratory) -> dict[str, list[SpokenQuestion]]:
    """By question: clips of several voices, each with the recogniser's word error rate."""
    work = lab.run.work(vision_speech.corpus)
    tts, rng = TTSSampler(work), Random(f"{work.seed} C9")
    if not tts.languages:
        raise ValueError("C9 needs a speech engine: `apt install espeak-ng`")
    recognise = work.models[vision_speech.RECOGNISER]
    found = defaultdict(list)
    for text, language in vision_speech.spoken_questions(work, "train"):
        for _ in range(VOICES if language in tts.languages else 0):
            clip = vision_speech.speak(tts, text, language, "train", rng)
            error = wer(clip.text, recognise(clip.audio), clip.language)
            found[text].append(replace(clip, error=round(error, 3)))
    return found


def corpora(lab: Laboratory) -> dict[str, Path]:
    """Two folders of corpora that differ in one: pictures asked about by the half of each question's clips that the
    recogniser understands best, and by a half drawn by chance."""
    folders = {name: lab.folder / "data" / f"C9-{name}" for name in ("filtered", "unfiltered")}
    if all((f / "vision_speech" / "train" / "manifest.json").exists() for f in folders.values()):
        return folders
    work = lab.run.work(vision_speech.corpus)
    found, rng = clips(lab), Random(f"{work.seed} C9 halves")
    halves: dict[str, dict[str, list[SpokenQuestion]]] = {
        "filtered": {
            t: sorted(c, key=lambda c: c.error or 0.0)[: VOICES // 2] for t, c in found.items()
        },
        "unfiltered": {t: rng.sample(c, VOICES // 2) for t, c in found.items()},
    }
    for name, half in halves.items():
        errors = [clip.error or 0.0 for some in half.values() for clip in some]
        lab.tell(f"  {name}: {len(errors)} clips, mean word error rate {mean(errors):.0%}")
    pictures = [
        row
        for row in vision_speech.written_questions(work, "train", TTSSampler(work), rng)
        if row.prompt[-1].text in found
    ][: min(ROWS, work.rows["train"])]
    voice = [rng.randrange(VOICES // 2) for _ in pictures]
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        for corpus in stages.load(STAGE).data.weights:
            if corpus != "vision_speech" and not (folder / corpus).exists():
                (folder / corpus).symlink_to((lab.run.data / corpus).resolve())
        rows = (
            vision_speech.sample(row, halves[name][row.prompt[-1].text][i], TASK, name)
            for row, i in zip(pictures, voice, strict=True)
        )
        shards.write(
            folder / "vision_speech" / "train", numbered("C9", "train", rows), pipeline=f"C9 {name}"
        )
    return folders


def run(lab: Laboratory) -> Iterator[Effect]:
    """Spoken questions about held-out pictures after either."""
    stage = stages.load(STAGE)
    for corpus in stage.data.weights:
        lab.run.build(corpus)
    found = {
        name: [
            lab.scores(arm, TASK)[TASK]
            for arm in lab.arms(f"C9-{name}", stage, lab.budget(stage, SHARE), data=folder)
        ]
        for name, folder in corpora(lab).items()
    }
    yield contrast(
        "spoken questions, filtered less unfiltered",
        ("accuracy", paired(found["unfiltered"], found["filtered"])),
    )


claim = Claim(
    name="C9",
    title="Filtered synthetic speech",
    says="Synthetic speech filtered by a recogniser's word error rate trains better than unfiltered.",
    where="3.3, 3.4",
    experiment=(
        f"Joint 1 for {SHARE:.0%} of its steps on the same pictures and questions, each question in {VOICES // 2} of "
        f"{VOICES} voices: those the run's own recogniser understands best, or any"
    ),
    run=run,
)
