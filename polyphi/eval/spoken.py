"""Texts read aloud, for benchmarks whose questions are spoken.

>>> spoken("How many legs has a spider?", "en")                  # bytes of a FLAC file, 16 kHz
>>> synthesise(benchmark.to_speak(data), Studio(folder))         # FOLDER/questions.jsonl, FOLDER/clips/*.flac

A row that is to be spoken is a mapping with `text` (a text, or several for several clips), perhaps `language` (English
otherwise) and `file` (the JSON lines file that it belongs to, questions.jsonl otherwise); whatever else it holds stays
in it. Spoken, it also has `audio` and `voice`; a picture in it has become a file.
"""

import hashlib
import io
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polyphi.eval.benchmark import benchmarks, suite
from polyphi.eval.sources import Data
from polyphi.messages import LANGUAGES, Audio, Image, Message, Part, Text
from polyphi.services.endpoint import Endpoint
from polyphi.services.speech_synthesis import ENGINES, Booth, Voice
from polyphi.text.normalization import errors, words

RATE = 16_000
LETTERS = "ABCDEFGHIJ"
Hear = Callable[[bytes, str], str]
"""What is said in a clip of a language, by whoever listens."""
_KANJI = re.compile(r"[\u3400-\u9fff]")
SENTENCE = {
    "en": "The train leaves at nine in the morning.",
    "de": "Der Zug fährt um neun Uhr morgens ab.",
    "es": "El tren sale a las nueve de la mañana.",
    "fr": "Le train part à neuf heures du matin.",
    "it": "Il treno parte alle nove del mattino.",
    "ja": "でんしゃは あさの くじに でます。",
    "pt": "O trem parte às nove da manhã.",
    "zh": "火车早上九点出发。",
}
"""One sentence of our own in the eight languages, for stand-ins of public data; Japanese in kana, which espeak-ng
reads."""


@lru_cache(maxsize=256)  # dialogues hear their first turns again with every further one
def spoken(
    text: str, language: str = "en", voice: Voice | None = None, kind: str = "FLAC"
) -> bytes:
    """The clip of a text in one of the eight languages, by espeak-ng unless a voice is given, as FLAC, WAV or MP3.
    Raises ValueError where that engine is missing."""
    import soundfile
    import soxr

    voice = voice or Voice(language=language)
    booth = Booth()  # one for each clip: what espeak-ng says depends on what it said before
    try:
        wave, rate = booth.speak(_readable(text, language, voice), voice)
    finally:
        booth.close()
    file = io.BytesIO()
    samples = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    subtype = "MPEG_LAYER_III" if kind == "MP3" else "PCM_16"
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format=kind, subtype=subtype)
    return file.getvalue()


@dataclass(frozen=True)
class Spoken(Audio):
    """A clip and the text that it says: models hear the one, people and judges read the other."""

    text: str = ""


def heard(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as a model gets it: of what is spoken, the clips alone."""
    return _with(messages, lambda part: Audio(part.source))


def read_out(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as it is read: of what is spoken, the texts alone."""
    return _with(messages, lambda part: Text(part.text))


def _with(messages: Sequence[Message], shown: Callable[[Spoken], Part]) -> list[Message]:
    return [
        replace(m, parts=tuple(shown(p) if isinstance(p, Spoken) else p for p in m.parts))
        for m in messages
    ]


def _readable(text: str, language: str, voice: Voice) -> str:
    """What the engine can read: espeak-ng's Japanese is kana only."""
    if voice.engine != "espeak-ng" or language != "ja" or not _KANJI.search(text):
        return text
    return "\n".join(_readings().parse(line).strip() for line in text.splitlines())


@cache
def _readings() -> Any:
    try:
        import ipadic
        import MeCab
    except ImportError:
        raise ValueError(
            "espeak-ng reads Japanese in kana only, which MeCab makes of other text; pip install 'polyphi[eval]', or "
            "give another --voice"
        ) from None
    return MeCab.Tagger(f"{ipadic.MECAB_ARGS} -Oyomi")


def with_options(question: str, options: Sequence[str]) -> str:
    """A question and its lettered options as they are read aloud, a pause after each."""
    said = [question, *(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=False))]
    return "\n".join(
        s if unicodedata.category((s.strip() or ".")[-1])[0] == "P" else f"{s}." for s in said
    )


# Who speaks --------------------------------------------------------------------------------------


def voice_of(told: str) -> Voice:
    """A voice as the command line names it: espeak-ng, espeak-ng:f2, flite:slt, http://host/v1#model:alloy, or any
    command that writes WAV, with {text} and {language} in it. It speaks whatever language a text has, as far as it can.

    >>> voice_of("http://127.0.0.1:9000/v1#kokoro:af_sky").variant
    'af_sky'
    """
    if told.startswith(("http://", "https://")):
        where, _, name = told.partition("#")
        model, _, variant = name.partition(":")
        return Voice("endpoint", variant=variant, where=where, model=model or Voice.model)
    engine, _, variant = told.partition(":")
    if engine in ("espeak-ng", "flite"):
        return Voice(engine, variant=variant or ("slt" if engine == "flite" else ""))
    if "{text}" in told:
        return Voice("command", where=told)
    raise ValueError(
        f"--voice {told}: expected {', '.join(ENGINES[:2])} (with :VARIANT), http://host/v1#MODEL:VOICE, or a command "
        "with {text} in it"
    )


def listener(told: str, key_from: str | None = None) -> Hear:
    """A transcription endpoint, http://host/v1#MODEL, as somebody who listens."""
    where, _, model = told.partition("#")
    if not model:
        raise ValueError(
            f"--listener {told}: expected an address and a model's name, such as http://127.0.0.1:8000/v1#phi"
        )
    endpoint = Endpoint(where, model, key_from=key_from)
    return lambda clip, language: endpoint.transcribe(clip, language=language)


def name_of(voice: Voice) -> str:
    where = f" {voice.where} {voice.model}" if voice.where else ""
    return f"{voice.engine}{where}{' ' * bool(voice.variant)}{voice.variant}"


@dataclass(frozen=True)
class Clip:
    """A clip of a studio. `errors` of `units` words (characters in Chinese and Japanese) were heard wrong; None where
    nobody listened."""

    file: str
    voice: str
    seconds: float
    heard: str | None = None
    errors: int | None = None
    units: int | None = None

    @property
    def rate(self) -> float:
        """The error rate; 0 where nobody listened."""
        return (self.errors or 0) / max(1, self.units or 1)


class Studio:
    """Clips below FOLDER/clips, found again by text, language and voice; `FOLDER/clips.jsonl` says of each who speaks
    and what was heard. Nothing that is there is spoken or listened to again.

    Voices take turns. Where somebody listens (`hear`) and a clip's error rate is above `worst`, the other voices try
    in their order, and the best clip counts (the report filters such speech by its WER, section 3.3; a benchmark can't
    leave a question out)."""

    def __init__(
        self,
        folder: Path,
        voices: Sequence[Voice] = (Voice(),),
        *,
        hear: Hear | None = None,
        worst: float = math.inf,
    ) -> None:
        self.folder, self.voices, self.hear, self.worst = folder, voices, hear, worst
        self.new = 0
        """Clips that were spoken rather than found."""
        self.used: dict[str, Clip] = {}
        """The clips that rows were given."""
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        self._path = folder / "clips.jsonl"
        self._known = {clip.file: clip for clip in _read(self._path)}

    def clip(self, text: str, language: str, turn: int) -> Clip:
        """A clip of the text, by the turn-th voice of those who speak the language, or a better one."""
        fit = [v for v in self.voices if v.engine != "flite" or language == "en"]
        if not fit:
            raise ValueError(
                f"flite speaks only English, and a text is in {LANGUAGES.get(language, language)}; add another --voice"
            )
        best: Clip | None = None
        for place in range(len(fit)):
            voice = replace(fit[(turn + place) % len(fit)], language=language)
            clip = self._clip(text, language, voice)
            if best is None or clip.rate < best.rate:
                best = clip
            if best.rate <= self.worst:
                break
        assert best is not None
        self.used[best.file] = best
        return best

    def _clip(self, text: str, language: str, voice: Voice) -> Clip:
        key = json.dumps([text, language, asdict(voice)], sort_keys=True)
        file = f"clips/{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:24]}.flac"
        clip, path = self._known.get(file), self.folder / file
        if clip is None or not path.exists():
            data = spoken(text, language, voice)
            partial = path.with_suffix(".partial")
            partial.write_bytes(data)
            partial.replace(path)
            clip = Clip(file, name_of(voice), _seconds(data))
            self.new += 1
            self._note(clip)
        if self.hear and clip.heard is None:
            heard = self.hear(path.read_bytes(), language)
            found = errors(words(text, language), words(heard, language))
            clip = replace(clip, heard=heard, errors=found.total, units=found.units)
            self._note(clip)
        return clip

    def _note(self, clip: Clip) -> None:
        """Later lines of a clip replace earlier ones; a line that was cut short is ended."""
        cut = self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut + json.dumps(asdict(clip)) + "\n")
        self._known[clip.file] = clip

    @property
    def error_rate(self) -> float | None:
        """Over all clips that rows were given; None where nobody listened."""
        heard = [clip for clip in self.used.values() if clip.units]
        if not heard:
            return None
        return sum(clip.errors or 0 for clip in heard) / sum(clip.units or 0 for clip in heard)

    def told(self) -> str:
        """In a line: how many clips, how long, how well they are understood."""
        clips = self.used.values()
        text = f"{len(clips)} clips ({self.new} new), {sum(c.seconds for c in clips) / 60:.1f} min"
        if self.error_rate is not None:
            over = sum(clip.rate > self.worst for clip in clips)
            text += (
                f", WER {100 * self.error_rate:.1f} % ({over} clips above {100 * self.worst:g} %)"
            )
        return text


def _seconds(data: bytes) -> float:
    import soundfile

    return round(soundfile.info(io.BytesIO(data)).duration, 3)


def _read(path: Path) -> Iterator[Clip]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield Clip(**json.loads(line))
        except json.JSONDecodeError:
            continue  # cut short


# Sets of questions -------------------------------------------------------------------------------


def synthesise(
    rows: Iterable[Mapping[str, Any]],
    studio: Studio,
    told: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Speaks rows and writes their files into the studio's folder, once all clips are there. Raises ValueError where a
    text can't be spoken."""
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(rows):
        texts = row["text"] if isinstance(row["text"], list | tuple) else [row["text"]]
        language = str(row.get("language") or "en")
        try:
            clips = [studio.clip(str(text), language, number) for text in texts]
        except ValueError as error:
            raise ValueError(f"question {row.get('id', number)}: {error}") from None
        audio = [clip.file for clip in clips]
        line = {key: value for key, value in row.items() if key != "file"}
        if (shown := line.get("image")) is not None:
            line["image"] = _kept(shown, studio.folder)
        line["audio"] = audio if isinstance(row["text"], list | tuple) else audio[0]
        line["voice"] = ", ".join(dict.fromkeys(clip.voice for clip in clips))
        files[str(row.get("file", "questions.jsonl"))].append(line)
        told(number + 1)
    for name, lines in files.items():
        partial = studio.folder / f".{name}.partial"
        partial.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        partial.replace(studio.folder / name)
    return [studio.folder / name for name in files]


def _kept(shown: Image | bytes | str | Path, folder: Path) -> str:
    """The name, below the folder, of a file with the picture."""
    source = shown.source if isinstance(shown, Image) else shown
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    kind = "png" if data.startswith(b"\x89PNG") else "jpg"
    name = f"images/{hashlib.sha256(data).hexdigest()[:24]}.{kind}"
    (folder / "images").mkdir(exist_ok=True)
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


def read_aloud(
    names: Sequence[str],
    folder: Path,
    texts: Data,
    *,
    voices: Sequence[Voice] = (Voice(),),
    hear: Hear | None = None,
    worst: float = math.inf,
    console: Console | None = None,
) -> None:
    """Speaks the questions of benchmarks, or of a suite's, into the folder of their data; tells what came of it. Raises
    ValueError where texts are missing or nobody can speak them."""
    console = console or Console(stderr=True)
    chosen = [b for b in suite(*names) if b.to_speak]
    if not chosen:
        known = ", ".join(b.name for b in benchmarks() if b.to_speak)
        raise ValueError(f"{', '.join(names)}: no questions to read aloud; those of {known} can be")
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for benchmark in chosen:
            assert benchmark.to_speak
            rows = list(benchmark.to_speak(texts))
            bar = progress.add_task(benchmark.title, total=len(rows))
            studio = Studio(folder / benchmark.sources[0].name, voices, hear=hear, worst=worst)
            paths = synthesise(
                rows,
                studio,
                lambda done, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )
            console.print(
                f"{benchmark.name}: {studio.told()}, {', '.join(map(str, paths))}",
                highlight=False,
                soft_wrap=True,
            )
