"""C9: training on synthetic speech filtered by a recognizer is better than on unfiltered speech (report 3.3, 3.4).

python -m experiments claims C9 --out runs/nano
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import ClaimRunner
from polyphi.data import shards
from polyphi_eval.text.normalization import wer
from polyphi_recipe.corpora import vision_speech
from polyphi_recipe.corpora.vision_speech import SpokenQuestion
from polyphi_recipe.synthetic.speech import TTSSampler, numbered

STAGE, TASK = "joint_1_vision_speech", "spoken_question"
STEP_SHARE = 0.4  # of the stage's steps
VOICES = 6  # of each question; half of the clips are used
ROWS = 2000


def clips(runner: ClaimRunner) -> dict[str, list[SpokenQuestion]]:
    """Audio clips of each question in several voices, each with the recognizer's word error rate."""
    work = runner.run.corpora.work(vision_speech.corpus)
    tts, rng = TTSSampler(work), Random(f"{work.seed} C9")
    if not tts.languages:
        raise ValueError("C9 needs a speech engine: `apt install espeak-ng`")
    recognize = work.models[vision_speech.RECOGNIZER]
    by_question = defaultdict(list)
    for text, language in vision_speech.spoken_questions(work, "train"):
        for _ in range(VOICES if language in tts.languages else 0):
            clip = vision_speech.speak(tts, text, language, "train", rng)
            error = wer(clip.text, recognize(clip.audio), clip.language)
            by_question[text].append(replace(clip, error=round(error, 3)))
    return by_question


def corpora(runner: ClaimRunner) -> dict[str, Path]:
    """Two folders of corpora that differ in vision_speech only: "filtered" has the half of each question's clips with
    the lowest word error rate, "unfiltered" a random half."""
    folders = {name: runner.folder / "data" / f"C9-{name}" for name in ("filtered", "unfiltered")}
    if all((f / "vision_speech" / "train" / "manifest.json").exists() for f in folders.values()):
        return folders
    work = runner.run.corpora.work(vision_speech.corpus)
    by_question, rng = clips(runner), Random(f"{work.seed} C9 halves")
    halves: dict[str, dict[str, list[SpokenQuestion]]] = {
        "filtered": {
            t: sorted(c, key=lambda c: c.error or 0.0)[: VOICES // 2]
            for t, c in by_question.items()
        },
        "unfiltered": {t: rng.sample(c, VOICES // 2) for t, c in by_question.items()},
    }
    for name, half in halves.items():
        errors = [clip.error or 0.0 for some in half.values() for clip in some]
        runner.report(f"  {name}: {len(errors)} clips, mean word error rate {mean(errors):.0%}")
    pictures = [
        row
        for row in vision_speech.written_questions(work, "train", TTSSampler(work), rng)
        if row.text in by_question
    ][: min(ROWS, work.rows["train"])]
    voice = [rng.randrange(VOICES // 2) for _ in pictures]
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        for corpus in runner.stage(STAGE).data.weights:
            if corpus != "vision_speech" and not (folder / corpus).exists():
                (folder / corpus).symlink_to((runner.run.folder.data / corpus).resolve())
        rows = (
            vision_speech.sample(row.sample(), halves[name][row.text][i], TASK, name)
            for row, i in zip(pictures, voice, strict=True)
        )
        shards.write(
            folder / "vision_speech" / "train", numbered("C9", "train", rows), pipeline=f"C9 {name}"
        )
    return folders


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Accuracy on spoken questions about held-out images, trained with filtered and unfiltered speech."""
    stage = runner.stage(STAGE)
    for corpus in stage.data.weights:
        runner.run.build(corpus)
    scores = {
        name: [
            runner.scores(arm, TASK)[TASK]
            for arm in runner.arms(
                f"C9-{name}", stage, runner.budget(stage, STEP_SHARE), data=folder
            )
        ]
        for name, folder in corpora(runner).items()
    }
    yield contrast(
        "spoken questions, filtered minus unfiltered",
        ("accuracy", paired(scores["unfiltered"], scores["filtered"])),
    )


claim = Claim(
    name="C9",
    title="Filtered synthetic speech",
    says="Training on synthetic speech filtered by a recognizer's word error rate is better than on unfiltered speech.",
    where="3.3, 3.4",
    experiment=(
        f"Joint 1 for {STEP_SHARE:.0%} of its steps on the same pictures and questions, each question in "
        f"{VOICES // 2} of {VOICES} voices: those with the lowest word error rate of the run's recognizer, or "
        "random ones"
    ),
    run=run,
)
