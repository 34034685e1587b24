"""Spoken questions about images: the questions of `image_qa` as synthetic speech instead of text, and at sizes of large
images those of `multi_image` about several frames (report 3.3).

As in the report (3.3): questions unfit for speech synthesis are left out, and the word error rate of a recognizer, here
`speech_0_aed`, filters the clips. A poor recognizer would filter at random: it is first measured on a sample of the
clips, and used only if its median error rate is low enough. The decision is logged and stored in `meta["filter"]`. Many
images share a question, so a clip is used several times.

The test split has each question twice: spoken ("spoken_question") and, as a control, written ("written_question").
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from statistics import median

from polyphi.data.shards import Sample, Shards
from polyphi.media.media import image_size
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image
from polyphi_eval.text.normalization import wer
from polyphi_recipe.corpora.image_qa import QUESTIONS
from polyphi_recipe.filters.transcripts import USABLE
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.pipeline.image_sizes import ImageSizes
from polyphi_recipe.raw.real_text import fill, interleave, shuffled
from polyphi_recipe.synthetic.speech import Speaker, TTSSampler, numbered, speakable
from polyphi_recipe.synthetic.waves import RATE, encode

CLIPS_PER_ROW = 0.2
MOST_CLIPS = 20_000  # they are in memory: about a gigabyte
RECOGNIZER = "speech_0_aed"
PROBE_CLIPS = 60  # sample size for the recognizer's error rate
MAX_WER = 0.7  # largest word error rate of a clip: twice the largest median of a usable recognizer


@dataclass(frozen=True)
class SpokenQuestion:
    """A spoken question; `error` is the recognizer's word error rate, None if not measured."""

    text: str
    language: str
    speaker: Speaker
    audio: bytes
    seconds: float
    error: float | None = None


def language_of(question: str) -> str:
    """Return the language of a question of `image_qa` (`meta["language"]` is that of the answer)."""
    languages = {
        text: language
        for by_language in QUESTIONS.values()
        for language, texts in by_language.items()
        for text in texts
    }
    return languages.get(question, "en")


@dataclass(frozen=True)
class WrittenQuestion:
    """The first question of a row, which is read when it is needed: the images of all rows would fill the memory."""

    text: str
    corpus: str
    rows: Shards
    index: int

    def sample(self) -> Sample:
        """Return the row with its first question only."""
        row = self.rows[self.index]
        return replace(row, messages=row.messages[:2])


def spoken_questions(work: Work, split: str) -> list[tuple[str, str]]:
    """Return (question, language) of each question of `image_qa` fit for speech synthesis, without duplicates."""
    rows = (replace(s, messages=s.messages[:2]) for s in Shards(work.data / "image_qa" / split))
    questions = (row.prompt[-1].text for row in rows if speakable_question(row))
    return [(text, language_of(text)) for text in dict.fromkeys(questions)]


def speakable_question(sample: Sample) -> bool:
    """Return whether the question is fit for speech synthesis. Requests are excluded: `audio_safety` has them."""
    return speakable(sample.prompt[-1].text) and sample.meta.get("task") != "request"


def speak(tts: TTSSampler, text: str, language: str, split: str, rng: Random) -> SpokenQuestion:
    group = rng.choice(tts.groups(language)) if split == "test" else ""
    speaker = tts.speaker(language, split, rng, group)
    wave = tts.synthesize(text, speaker, rng)
    return SpokenQuestion(text, language, speaker, encode(wave), round(len(wave) / RATE, 2))


def written_questions(
    work: Work, split: str, tts: TTSSampler, rng: Random
) -> list[WrittenQuestion]:
    """Return the questions fit for speech whose images fit a row: shuffled in training, else of each corpus in turn."""

    def one(corpus: str) -> Iterator[WrittenQuestion]:
        rows = Shards(work.data / corpus / split)
        for index, row in enumerate(rows):
            first = replace(row, messages=row.messages[:2])
            text = first.prompt[-1].text
            if (
                speakable_question(first)
                and language_of(text) in tts.languages
                and (work.image_sizes is None or _fits(first, work.image_sizes))
            ):
                yield WrittenQuestion(text, corpus, rows, index)

    corpora = ("image_qa",) if work.image_sizes is None else ("image_qa", "multi_image")
    questions = list(interleave([one(corpus) for corpus in corpora]))
    return shuffled(questions, rng) if split == "train" else questions


def _fits(row: Sample, sizes: ImageSizes) -> bool:
    """Return whether the images of a row fit the context of the stage."""
    images = [image_size(image.source) for image in media(row.messages, Image)]
    return sum(sizes.count_tokens(*size) for size in images) <= sizes.tokens


def filter_by_wer(
    clips: list[SpokenQuestion], recognize: Callable[[bytes], str] | None, work: Work, rng: Random
) -> tuple[list[SpokenQuestion], str]:
    """Return the clips with a word error rate up to `MAX_WER`, and the filter: "none", "poor recogniser", or the limit
    (without a usable recognizer all clips are returned)."""
    if recognize is None:
        work.report("vision_speech: no recognizer, clips are not filtered")
        return clips, "none"

    def measure(clip: SpokenQuestion) -> SpokenQuestion:
        return replace(clip, error=round(wer(clip.text, recognize(clip.audio), clip.language), 3))

    probe = [measure(clip) for clip in rng.sample(clips, min(PROBE_CLIPS, len(clips)))]
    median_error = median(clip.error or 0.0 for clip in probe)
    if median_error > USABLE:
        work.report(
            f"vision_speech: the recognizer's median word error rate is {median_error:.0%} on {len(probe)} clips, "
            f"above {USABLE:.0%}: clips are not filtered"
        )
        return clips, "poor recogniser"
    measured = [measure(clip) for clip in clips]
    accepted = [clip for clip in measured if (clip.error or 0.0) <= MAX_WER]
    work.report(
        f"vision_speech: kept {len(accepted)} of {len(clips)} clips with a word error rate up to {MAX_WER:.0%} "
        f"(median {median_error:.0%})"
    )
    return accepted, f"word error rate <= {MAX_WER}"


def sample(
    row: Sample, clip: SpokenQuestion, task: str, filter: str, corpus: str = "image_qa"
) -> Sample:
    """Return a sample of `corpus` with the clip as its question, and its meta."""
    meta = {
        **{key: value for key, value in row.meta.items() if key != "task"},
        **{
            "task": task,
            "kind": row.meta.get("task", ""),
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
            corpus: row.id,
            **({} if clip.error is None else {"wer": clip.error}),
        },
    }
    return replace(with_spoken_question(row, clip.audio), meta=meta)


def with_spoken_question(row: Sample, audio: bytes) -> Sample:
    """Return the sample with audio instead of its written question."""
    images = media(row.messages, Image)
    return replace(row, messages=(Message.user(*images, Audio(audio)), row.messages[-1]))


def training(work: Work, tts: TTSSampler, rng: Random) -> Iterator[Sample]:
    """Yield images with a spoken question; images without an accepted clip of their question are skipped."""
    rows = written_questions(work, "train", tts, rng)[: work.rows["train"]]
    if work.image_sizes is not None:  # large images are read in the order of their shards
        rows.sort(key=lambda row: (row.corpus, row.index))
    questions = [row.text for row in rows]
    # One clip per question, then further voices in proportion to the frequency of the question.
    texts = list(dict.fromkeys(questions))
    texts += questions[: max(0, min(MOST_CLIPS, int(CLIPS_PER_ROW * len(rows))) - len(texts))]
    clips = [speak(tts, text, language_of(text), "train", rng) for text in texts]
    accepted, filter = filter_by_wer(clips, work.models.get(RECOGNIZER), work, rng)
    by_text: dict[str, list[SpokenQuestion]] = {}
    for clip in accepted:
        by_text.setdefault(clip.text, []).append(clip)
    for row in rows:
        if clips_of_text := by_text.get(row.text):
            clip = rng.choice(clips_of_text)
            yield sample(row.sample(), clip, "spoken_question", filter, row.corpus)


def testing(work: Work, tts: TTSSampler, rng: Random) -> Iterator[Sample]:
    """Yield each test image with its spoken, then its written question; without a filter."""
    for question in written_questions(work, "test", tts, rng):
        row = question.sample()
        clip = speak(tts, question.text, language_of(question.text), "test", rng)
        yield sample(row, clip, "spoken_question", "none", question.corpus)
        meta = {
            **row.meta,
            "task": "written_question",
            "kind": row.meta.get("task", ""),
            "question": clip.text,
        }
        yield replace(row, meta={**meta, question.corpus: row.id})


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        tts = TTSSampler(work)
        if not tts.languages:
            work.report(
                "skipped spoken questions about pictures: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        samples = training(work, tts, rng) if split == "train" else testing(work, tts, rng)
        return numbered("vision_speech", split, islice(samples, work.rows[split]))

    return fill(work, "vision_speech", make)


corpus = Corpus(
    "vision_speech", build=build, corpora=("image_qa", "multi_image"), stages=(RECOGNIZER,)
)
