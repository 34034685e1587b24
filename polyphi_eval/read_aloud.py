"""Synthesize the spoken questions of benchmarks into the folder of their data.

>>> synthesize_rows(benchmark.spoken_questions(data), SpeechCache(folder)) # FOLDER/questions.jsonl, FOLDER/clips/*.flac

An input row is a mapping with `text` (a text, or several for several clips) and optionally `language` (English by
default) and `file` (its JSON lines file, questions.jsonl by default); other fields are copied. The output row also has
`audio` and `voice`, and the path of its image if it has one.
"""

import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polyphi.runtime.files import write_whole
from polyphi.text.quantity import quantity
from polyphi.types.parts import Image
from polyphi.types.transcript import LANGUAGES
from polyphi_eval.benchmark import benchmarks, suite
from polyphi_eval.services.endpoint import Endpoint
from polyphi_eval.services.response_cache import ResponseCache, request_key
from polyphi_eval.services.speech_synthesis import ENGINES, Voice
from polyphi_eval.sources import Data, write_rows
from polyphi_eval.spoken import synthesize
from polyphi_eval.text.normalization import errors, words

Transcribe = Callable[[bytes, str], str]
"""Returns the transcript of audio in a language. Transcripts are cached by its `name`, if it has one."""


def voice_of(name: str) -> Voice:
    """Return the voice of a --voice option: espeak-ng, espeak-ng:f2, flite:slt, http://host/v1#model:alloy, or a
    command that writes WAV, with {text} and {language}.

    >>> voice_of("http://127.0.0.1:9000/v1#kokoro:af_sky").variant
    'af_sky'
    """
    if name.startswith(("http://", "https://")):
        url, _, served_name = name.partition("#")
        model, _, variant = served_name.partition(":")
        return Voice("endpoint", variant=variant, where=url, model=model or Voice.model)
    engine, _, variant = name.partition(":")
    if engine in ("espeak-ng", "flite"):
        return Voice(engine, variant=variant or ("slt" if engine == "flite" else ""))
    if "{text}" in name:
        return Voice("command", where=name)
    raise ValueError(
        f"--voice {name}: expected {', '.join(ENGINES[:2])} (with :VARIANT), http://host/v1#MODEL:VOICE, or a command "
        "with {text}"
    )


@dataclass(frozen=True)
class Listener:
    """The transcription function of an endpoint."""

    endpoint: Endpoint

    @property
    def name(self) -> str:
        return self.endpoint.name

    def __call__(self, audio: bytes, language: str) -> str:
        return self.endpoint.transcribe(audio, language=language)


def listener(address: str, key_from: str | None = None) -> Listener:
    """Return the transcription function of an endpoint, http://host/v1#MODEL."""
    return Listener(Endpoint.at(address, key_from=key_from))


def name_of(voice: Voice) -> str:
    where = f" {voice.where} {voice.model}" if voice.where else ""
    return f"{voice.engine}{where}{' ' * bool(voice.variant)}{voice.variant}"


@dataclass(frozen=True)
class SpokenClip:
    """Synthesized speech of a text. Its transcript, `hypothesis`, has `errors` in `units` words (characters in Chinese
    and Japanese); these are None without a listener."""

    file: str
    voice: str
    seconds: float
    hypothesis: str | None = None
    errors: int | None = None
    units: int | None = None

    @property
    def rate(self) -> float:
        """The error rate of the clip's transcript, as a share; 0 without a listener."""
        return (self.errors or 0) / max(1, self.units or 1)


class SpeechCache:
    """Synthesizes speech in FOLDER/clips, cached by text, language and voice. `FOLDER/clips.jsonl` has the voice of
    each clip, and its transcript by each listener.

    Voices alternate. If the error rate by `transcribe` is above `worst`, the other voices are tried in order, and the
    best clip is used (the report filters such speech by WER, section 3.3; a benchmark can't leave a question out).
    """

    def __init__(
        self,
        folder: Path,
        voices: Sequence[Voice] = (Voice(),),
        *,
        transcribe: Transcribe | None = None,
        worst: float = math.inf,
    ) -> None:
        self.folder, self.voices, self.transcribe, self.worst = folder, voices, transcribe, worst
        self.new = 0
        """Number of clips that were not in the cache."""
        self.used: dict[str, SpokenClip] = {}
        """The clips of all rows."""
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        self._lines = ResponseCache(folder, "clips")

    def clip(self, text: str, language: str, turn: int) -> SpokenClip:
        """Return a clip of the text by the turn-th voice for the language, or a better one (see above)."""
        voices = [v for v in self.voices if v.engine != "flite" or language == "en"]
        if not voices:
            raise ValueError(
                f"flite speaks only English, and a text is in {LANGUAGES.get(language, language)}; add another --voice"
            )
        best: SpokenClip | None = None
        for i in range(len(voices)):
            voice = replace(voices[(turn + i) % len(voices)], language=language)
            clip = self._clip(text, language, voice)
            if best is None or clip.rate < best.rate:
                best = clip
            if best.rate <= self.worst:
                break
        assert best is not None
        self.used[best.file] = best
        return best

    def _clip(self, text: str, language: str, voice: Voice) -> SpokenClip:
        key = json.dumps([text, language, asdict(voice)], sort_keys=True)
        file = f"clips/{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:24]}.flac"
        path = self.folder / file
        if not path.exists():
            write_whole(path, synthesize(text, language, voice))
            self.new += 1
        listener = getattr(self.transcribe, "name", "") if self.transcribe else None
        key = request_key({"file": file, "listener": listener})
        if (line := self._lines.find(key)) is None:
            data = path.read_bytes()
            clip = SpokenClip(file, name_of(voice), _seconds(data))
            if self.transcribe:
                transcript = self.transcribe(data, language)
                counts = errors(words(text, language), words(transcript, language))
                clip = replace(clip, hypothesis=transcript, errors=counts.total, units=counts.units)
            line = self._lines.store({key: asdict(clip)})[key]
        return SpokenClip(**{name: value for name, value in line.items() if name != "key"})

    @property
    def error_rate(self) -> float | None:
        """The error rate of the clips of all rows; None without a listener."""
        clips = [clip for clip in self.used.values() if clip.units]
        if not clips:
            return None
        return sum(clip.errors or 0 for clip in clips) / sum(clip.units or 0 for clip in clips)

    def summary(self) -> str:
        """Return number, duration and error rate of the clips."""
        clips = self.used.values()
        text = f"{quantity(len(clips), 'clip')} ({self.new} new), {sum(c.seconds for c in clips) / 60:.1f} min"
        if self.error_rate is not None:
            over = sum(clip.rate > self.worst for clip in clips)
            text += f", WER {100 * self.error_rate:.1f} % ({quantity(over, 'clip')} above {100 * self.worst:g} %)"
        return text


def _seconds(data: bytes) -> float:
    import soundfile

    return round(soundfile.info(io.BytesIO(data)).duration, 3)


# Sets of questions -------------------------------------------------------------------------------


def synthesize_rows(
    rows: Iterable[Mapping[str, Any]],
    speech: SpeechCache,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Synthesize rows, then write their files into the cache's folder and return the paths. Raises ValueError if a text
    can't be synthesized."""
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(rows):
        texts = row["text"] if isinstance(row["text"], list | tuple) else [row["text"]]
        language = str(row.get("language") or "en")
        try:
            clips = [speech.clip(str(text), language, number) for text in texts]
        except ValueError as error:
            raise ValueError(f"question {row.get('id', number)}: {error}") from None
        audio = [clip.file for clip in clips]
        line = {key: value for key, value in row.items() if key != "file"}
        if (image := line.get("image")) is not None:
            line["image"] = _save_image(image, speech.folder)
        line["audio"] = audio if isinstance(row["text"], list | tuple) else audio[0]
        line["voice"] = ", ".join(dict.fromkeys(clip.voice for clip in clips))
        files[str(row.get("file", "questions.jsonl"))].append(line)
        progress(number + 1)
    for name, lines in files.items():
        write_rows(speech.folder / name, lines)
    return [speech.folder / name for name in files]


def _save_image(image: Image | bytes | str | Path, folder: Path) -> str:
    """Write an image into the folder and return its relative path."""
    source = image.source if isinstance(image, Image) else image
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
    name = f"images/{hashlib.sha256(data).hexdigest()[:24]}.{suffix}"
    (folder / "images").mkdir(exist_ok=True)
    if not (folder / name).exists():
        write_whole(folder / name, data)
    return name


def read_aloud(
    names: Sequence[str],
    folder: Path,
    texts: Data,
    *,
    voices: Sequence[Voice] = (Voice(),),
    transcribe: Transcribe | None = None,
    worst: float = math.inf,
    console: Console | None = None,
) -> None:
    """Synthesize the spoken questions of benchmarks or suites into the folder of their data, and print a summary.
    Raises ValueError if texts are missing or can't be synthesized."""
    console = console or Console(stderr=True)
    chosen = [b for b in suite(*names) if b.spoken_questions]
    if not chosen:
        known = ", ".join(b.name for b in benchmarks() if b.spoken_questions)
        raise ValueError(
            f"{', '.join(names)}: expected a benchmark with spoken questions, found none; use some of {known}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for benchmark in chosen:
            assert benchmark.spoken_questions
            rows = list(benchmark.spoken_questions(texts))
            bar = progress.add_task(benchmark.title, total=len(rows))
            speech = SpeechCache(
                folder / benchmark.sources[0].name, voices, transcribe=transcribe, worst=worst
            )
            paths = synthesize_rows(
                rows,
                speech,
                lambda done, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )
            console.print(
                f"{benchmark.name}: {speech.summary()}, {', '.join(map(str, paths))}",
                highlight=False,
                soft_wrap=True,
            )
