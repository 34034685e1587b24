"""Spoken questions about pictures: the questions of `image_qa`, read aloud, in place of the written ones.

As in the report (3.4): questions unfit to be read out are left out, the others are spoken by synthetic voices, and a
recogniser's word error rate filters the clips: here that of `speech_0_aed`. A poor recogniser would only throw dice,
so it is measured first on the clips' known texts, and filters only if its median error rate is low enough; what was
done is told and stands in `meta["filter"]`. Few questions are asked of many pictures, so a clip is used several times.

The test split asks each question twice: spoken ("spoken_question") and, as its control, written ("written_question").
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from statistics import median

from polyphi.corpora.image_qa import QUESTIONS
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.text import fill, shuffled
from polyphi.curate.transcripts import USABLE
from polyphi.curate.waves import RATE, encode
from polyphi.data.shards import Sample, Shards
from polyphi.messages import Audio, Image, Message
from polyphi.synthetic.speech import Speaker, Studio, numbered, speakable
from polyphi.text.normalization import wer

CLIPS_PER_ROW = 0.2
RECOGNISER = "speech_0_aed"
MEASURED = 60  # clips that the recogniser is measured on
KEPT = 0.7  # word error rate up to which a clip is kept: twice what a usable recogniser does at its worst


@dataclass(frozen=True)
class Clip:
    """A spoken question; `error` is the recogniser's word error rate, where it was asked."""

    text: str
    language: str
    speaker: Speaker
    audio: bytes
    seconds: float
    error: float | None = None


def language_of(question: str) -> str:
    """The language that a question of `image_qa` is asked in; its `meta` names that of the answer."""
    asked = {
        text: language
        for ways in QUESTIONS.values()
        for language, texts in ways.items()
        for text in texts
    }
    return asked.get(question, "en")


def first_turns(work: Work, split: str) -> Iterator[Sample]:
    """The samples of `image_qa` with their first question alone."""
    for sample in Shards(work.data / "image_qa" / split):
        yield replace(sample, messages=sample.messages[:2])


def spoken_questions(work: Work, split: str) -> list[tuple[str, str]]:
    """(question, language) of every question that can be read out, each once: a recogniser must understand them."""
    asked = (s.prompt[-1].text for s in first_turns(work, split) if readable(s))
    return [(text, language_of(text)) for text in dict.fromkeys(asked)]


def readable(sample: Sample) -> bool:
    """Whether its question can be read out. Requests are spoken in `audio_safety`."""
    return speakable(sample.prompt[-1].text) and sample.meta["task"] != "request"


def speak(studio: Studio, text: str, language: str, split: str, rng: Random) -> Clip:
    group = rng.choice(studio.groups(language)) if split == "test" else ""
    speaker = studio.speaker(language, split, rng, group)
    wave = studio.say(text, speaker, rng)
    return Clip(text, language, speaker, encode(wave), round(len(wave) / RATE, 2))


def written(work: Work, split: str, studio: Studio, rng: Random) -> list[Sample]:
    """Samples of `image_qa` with one picture and a question that can be read out, shuffled in training."""
    found = [
        sample
        for sample in first_turns(work, split)
        if readable(sample)
        and language_of(sample.prompt[-1].text) in studio.languages
        and sum(isinstance(part, Image) for part in sample.prompt[-1].parts) == 1
    ]
    return shuffled(found, rng) if split == "train" else found


def filtered(
    clips: list[Clip], recognise: Callable[[bytes], str] | None, work: Work, rng: Random
) -> tuple[list[Clip], str]:
    """The clips that the recogniser understands, and what was done: "none", "poor recogniser", or the limit
    applied."""
    if recognise is None:
        work.tell("vision_speech: no recogniser, clips are not filtered")
        return clips, "none"

    def measure(clip: Clip) -> Clip:
        return replace(clip, error=round(wer(clip.text, recognise(clip.audio), clip.language), 3))

    some = [measure(clip) for clip in rng.sample(clips, min(MEASURED, len(clips)))]
    middle = median(clip.error or 0.0 for clip in some)
    if middle > USABLE:
        work.tell(
            f"vision_speech: the recogniser's median word error rate is {middle:.0%} on {len(some)} clips, "
            f"above {USABLE:.0%}: clips are not filtered"
        )
        return clips, "poor recogniser"
    measured = [measure(clip) for clip in clips]
    kept = [clip for clip in measured if (clip.error or 0.0) <= KEPT]
    work.tell(
        f"vision_speech: kept {len(kept)} of {len(clips)} clips with a word error rate up to {KEPT:.0%} "
        f"(median {middle:.0%})"
    )
    return kept, f"word error rate <= {KEPT}"


def sample(picture: Sample, clip: Clip, task: str, filter: str) -> Sample:
    """The picture's sample, asked by the clip."""
    meta = {
        **{key: value for key, value in picture.meta.items() if key != "task"},
        **{
            "task": task,
            "kind": picture.meta.get("task", ""),
            "question": clip.text,
            "filter": filter,
        },
        "spoken": clip.language,
        **{
            "voice": clip.speaker.group,
            "engine": clip.speaker.engine,
            "speaker": clip.speaker.name,
        },
        **{
            "seconds": clip.seconds,
            "image_qa": picture.id,
            **({} if clip.error is None else {"wer": clip.error}),
        },
    }
    return replace(aloud(picture, clip.audio), meta=meta)


def aloud(picture: Sample, audio: bytes) -> Sample:
    """The sample with a clip in place of its written question."""
    image = next(part for part in picture.prompt[-1].parts if isinstance(part, Image))
    return replace(picture, messages=(Message.user(image, Audio(audio)), picture.messages[-1]))


def training(work: Work, studio: Studio, rng: Random) -> Iterator[Sample]:
    """Pictures with a clip of their question; pictures whose question has no clip left are passed over."""
    rows = written(work, "train", studio, rng)[: work.rows["train"]]
    asked = [row.prompt[-1].text for row in rows]
    # Every question gets a clip, then more voices go to questions in proportion to how often they are asked.
    wanted = list(dict.fromkeys(asked))
    wanted += asked[: max(0, int(CLIPS_PER_ROW * len(rows)) - len(wanted))]
    clips = [speak(studio, text, language_of(text), "train", rng) for text in wanted]
    kept, done = filtered(clips, work.models.get(RECOGNISER), work, rng)
    by_text: dict[str, list[Clip]] = {}
    for clip in kept:
        by_text.setdefault(clip.text, []).append(clip)
    for row in rows:
        if voices := by_text.get(row.prompt[-1].text):
            yield sample(row, rng.choice(voices), "spoken_question", done)


def testing(work: Work, studio: Studio, rng: Random) -> Iterator[Sample]:
    """Each test picture spoken and written, one after the other; never filtered."""
    for row in written(work, "test", studio, rng):
        clip = speak(studio, row.prompt[-1].text, language_of(row.prompt[-1].text), "test", rng)
        yield sample(row, clip, "spoken_question", "none")
        meta = {
            **row.meta,
            "task": "written_question",
            "kind": row.meta.get("task", ""),
            "question": clip.text,
        }
        yield replace(row, meta={**meta, "image_qa": row.id})


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        studio = Studio(work)
        if not studio.languages:
            work.tell(
                "skipped spoken questions about pictures: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        made = training(work, studio, rng) if split == "train" else testing(work, studio, rng)
        return numbered("vision_speech", split, islice(made, work.rows[split]))

    return fill(work, "vision_speech", make)


corpus = Corpus("vision_speech", build=build, corpora=("image_qa",), stages=(RECOGNISER,))
