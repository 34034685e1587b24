"""The recordings that `polyphi transcribe` names, and which of them are to be transcribed, without a model.

>>> recordings = targets(find(["talks/", "call.wav"]), Path("transcripts"), "srt")
>>> todo, failed = select(recordings, TranscriptOptions(form="srt"))

This module imports no torch: a missing or an empty file is reported at once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from rich.console import Console

from polyphi.media.file_types import AUDIO_FORMATS, SNIFF_BYTES, sniff
from polyphi.media.media import AudioStream
from polyphi.runtime.files import sha256
from polyphi.text.quantity import quantity
from polyphi.transcription import record
from polyphi.transcription.transcript_options import TranscriptOptions
from polyphi.types.transcript import LONGEST_RECORDING

UNREADABLE = "unreadable"
AUDIO = (*AUDIO_FORMATS, "M4A audio", "AAC", "AMR", UNREADABLE)
"""The types of files that are taken from a folder; an unreadable one fails later, with the reason."""
MAX_SKIPPED = 10
"""Names of a folder's skipped files that are printed."""
SUFFIXES = {
    "text": ".txt",
    "json": ".json",
    "verbose_json": ".verbose.json",
    "srt": ".srt",
    "vtt": ".vtt",
}


@dataclass(frozen=True)
class Recording:
    """A file, the path of its transcript (None: standard output, after `prefix`), its seconds by its header, and the
    hash of its bytes, if it has a target."""

    path: Path
    target: Path | None
    prefix: str = ""
    seconds: float = 0.0
    content: str = ""


def find(names: Sequence[str], console: Console | None = None) -> list[tuple[Path, Path]]:
    """(file, the folder that its name is relative to) of files, folders and patterns such as "talks/**/*.mp3", in order
    and without duplicates. Of a folder every audio file at any depth, detected by its first bytes; what is skipped goes
    to `console`, except hidden files. A missing or unreadable file stays and is reported later. Raises ValueError for a
    folder or a pattern without recordings."""
    log = logger(console or Console(stderr=True))
    result: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.is_file() or not p.exists()]
            types = {p: _file_type(p) for p in files}
            inside = [(p, path) for p, file_type in types.items() if file_type in AUDIO]
            skipped = [
                f"{p.relative_to(path)} ({file_type})"
                for p, file_type in types.items()
                if file_type not in AUDIO and not p.name.startswith(".")
            ]
            if skipped:
                log(_skipped(name, skipped))
        elif not path.exists() and any(c in name for c in "*?["):
            root = Path(path.anchor or ".")
            pattern = str(path.relative_to(root)) if path.anchor else name
            inside = [(p, p.parent) for p in sorted(root.glob(pattern)) if p.is_file()]
        else:
            inside = [(path, path.parent)]
        if not inside:
            raise ValueError(f"{name}: expected recordings, found none")
        for file, folder in inside:
            result.setdefault(file, folder)
    return list(result.items())


def _file_type(path: Path) -> str:
    """The type of a file by its first bytes."""
    try:
        with path.open("rb") as file:
            return sniff(file.read(SNIFF_BYTES))
    except OSError:
        return UNREADABLE


def _skipped(folder: str, files: Sequence[str]) -> str:
    rest = f" and {len(files) - MAX_SKIPPED} more" if len(files) > MAX_SKIPPED else ""
    return (
        f"{folder}: skipped {quantity(len(files), 'file')} without the bytes of an audio format: "
        f"{', '.join(files[:MAX_SKIPPED])}{rest}; name MP4 and WebM files to transcribe their sound"
    )


def targets(files: Sequence[tuple[Path, Path]], out: Path | None, form: str) -> list[Recording]:
    """Recordings with the paths of their transcripts: the file's name with another suffix, in its folder below `out`;
    if two would be equal (a.wav, a.mp3), the suffix is appended to the whole name. Raises ValueError if two are still
    equal."""
    if out is None:
        several = len(files) > 1
        return [Recording(path, None, f"{path}: " if several else "") for path, _ in files]
    inner = [path.relative_to(folder) for path, folder in files]
    short = Counter(path.with_suffix("") for path in inner)
    names = [p if short[p.with_suffix("")] > 1 else p.with_suffix("") for p in inner]
    paths = [out / name.with_name(name.name + SUFFIXES[form]) for name in names]
    if duplicates := [path for path, count in Counter(paths).items() if count > 1]:
        same = [str(f) for (f, _), path in zip(files, paths, strict=True) if path == duplicates[0]]
        raise ValueError(
            f"{' and '.join(same)} would both be written to {duplicates[0]}; transcribe them in separate runs"
        )
    return [Recording(path, target) for (path, _), target in zip(files, paths, strict=True)]


def select(
    recordings: Sequence[Recording],
    options: TranscriptOptions,
    *,
    force: bool = False,
    console: Console | None = None,
) -> tuple[list[Recording], int]:
    """(recordings to transcribe, number of the others that failed), without the model: a missing, empty or unknown file
    fails. A transcript of the same recording and options is kept; one of others is written again, unless it was edited:
    that counts as a failure (`force` writes all). Failures and what is kept go to `console`."""
    log = logger(console or Console(stderr=True))
    settings = options.digest()
    todo, failed = [], 0
    states: Counter[record.RecordState] = Counter()
    lines_in = cache(record.read)
    for recording in recordings:
        try:
            stream = AudioStream(recording.path, max_seconds=LONGEST_RECORDING)
            if recording.target is not None:
                lines = lines_in(recording.target.parent).get(recording.target.name, [])
                state = record.state(recording.target, lines, recording.path, settings)
                states[state] += 1
                if state == "edited and outdated" and not force:
                    raise ValueError(
                        f"{recording.target} is kept: it was edited, or written by another program, and would be "
                        f"replaced by the transcript of {recording.path} with this model and these options; move it, "
                        "or use --force"
                    )
                if state in ("current", "edited") and not force:
                    continue
                recording = replace(recording, content=sha256(recording.path))
            next(iter(stream))  # raises for an empty one, and where the beginning is damaged
        except (ValueError, OSError) as error:
            failed += 1
            log(f"failed: {error}")
            continue
        # Programs that write a stream don't know its length when they write the header.
        seconds = stream.announced / stream.rate if stream.announced < 2**60 else 0.0
        todo.append(replace(recording, seconds=seconds))
    unchanged = states["current"] + states["edited"]
    if unchanged and not force:
        edited = f" ({states['edited']} of them edited since)" if states["edited"] else ""
        log(
            f"kept {quantity(unchanged, 'transcript')} of the same recordings, model and options{edited}"
        )
    if states["outdated"] and not force:
        outdated = quantity(states["outdated"], "transcript")
        log(f"writing {outdated} again: the recording, the model or the options changed")
    return todo, failed


def logger(console: Console) -> Callable[[str], None]:
    """A function that prints a line as it is."""
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
