"""Many recordings to transcript files, for `polyphi transcribe`.

It prints a plan first (minutes, tokens, pieces). Short files run in one batch. Each result is written atomically when
its group is done, so that a stopped run resumes: a transcript of the same recording, model and options is kept
(record.py). A file that can't be read is reported, and the others continue.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polyphi.engine.engine import Engine
from polyphi.messages import Message, Transcript
from polyphi.processing.file_types import AUDIO_FORMATS, SNIFF_BYTES, sniff
from polyphi.processing.media import AudioStream
from polyphi.runtime.files import sha256
from polyphi.text.quantity import quantity
from polyphi.transcription import longform, record, subtitles
from polyphi.transcription.options import TranscriptOptions

SUFFIXES = {
    "text": ".txt",
    "json": ".json",
    "verbose_json": ".verbose.json",
    "srt": ".srt",
    "vtt": ".vtt",
}
MAX_GROUP_FILES, MAX_GROUP_SECONDS = 32, 600.0  # of short files that run and are written together


@dataclass(frozen=True)
class Recording:
    """A file, the path of its transcript (None: standard output, after `prefix`), its seconds by its header, and the
    hash of its bytes, if it has a target."""

    path: Path
    target: Path | None
    prefix: str = ""
    seconds: float = 0.0
    content: str = ""


def find(names: Sequence[str]) -> list[tuple[Path, Path]]:
    """(file, the folder that its name is relative to) of files, folders and patterns such as "talks/**/*.mp3", in order
    and without duplicates. Of a folder every audio file at any depth, detected by its first bytes. A missing file
    stays and is reported later. Raises ValueError for a folder or a pattern without recordings."""
    result: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [(p, path) for p in sorted(path.rglob("*")) if p.is_file() and _is_audio(p)]
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


def _is_audio(path: Path) -> bool:
    with path.open("rb") as file:
        return sniff(file.read(SNIFF_BYTES)) in (*AUDIO_FORMATS, "M4A audio", "AAC", "AMR")


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
    log = _logger(console or Console(stderr=True))
    settings = options.digest()
    todo, failed = [], 0
    states: Counter[record.State] = Counter()
    lines_in = cache(record.read)
    for recording in recordings:
        try:
            stream = AudioStream(recording.path, max_seconds=longform.LONGEST_RECORDING)
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
            next(
                iter(stream)
            )  # raises for an empty one, and for one that is damaged where it begins
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


def transcribe_files(
    engine: Engine,
    todo: Sequence[Recording],
    options: TranscriptOptions,
    *,
    write: Callable[[str], None] = print,
    console: Console | None = None,
) -> int:
    """Transcribe recordings that were selected; returns the number of files that failed. `write` receives transcripts
    without a target; plan, progress, warnings and failures go to `console`. ValueErrors as in `Phi.transcribe`."""
    console = console or Console(stderr=True)
    log = _logger(console)
    task = longform.transcription(options.to, options.cot)
    task = replace(task, adapter=options.adapter, words=options.words)
    if engine.model.config.audio is None:
        raise ValueError(
            "this model has no audio encoder; load one with an audio encoder to transcribe"
        )
    # Raises for an unknown adapter.
    engine.rows.row([Message.user(task.prompt)], adapter=options.adapter)
    limit = longform.longest_piece(engine, task, options.window)
    settings, failed = options.digest(), 0
    if len(todo) > 1 or any(r.seconds > limit for r in todo):
        log(_plan(todo, limit))
    with _progress(console) as progress:
        total = sum(r.seconds for r in todo)
        unit, size = _unit(total)
        bar = progress.add_task("", total=total / size, unit=unit)

        def advance(seconds: float) -> None:
            progress.advance(bar, seconds / size)

        def answers(group: Sequence[Recording]) -> list[Transcript]:
            paths = [recording.path for recording in group]
            return longform.transcribe(
                engine, paths, task, window=options.window, on_progress=advance
            )

        for group in _groups(todo):
            for recording, result in _results(group, answers):
                if isinstance(result, ValueError):
                    failed += 1
                    log(f"failed: {result}")
                    continue
                on_terminal = recording.target is None and console.is_terminal
                if on_terminal:  # without the bar, behind which the transcript would be printed
                    progress.stop()
                text = subtitles.write(result, options.form)
                if recording.target is None:
                    write(recording.prefix + text.rstrip("\n"))
                else:
                    record.write(recording.target, text, recording.content, settings)
                if on_terminal:
                    progress.start()
                for warning in result.warnings:
                    log(f"{recording.path}: warning: {warning}")
    return failed


def _plan(todo: Sequence[Recording], limit: float) -> str:
    seconds = sum(r.seconds for r in todo)
    pieces = round(sum(max(1, -(-r.seconds // limit)) for r in todo))
    tokens = seconds * longform.AUDIO_TOKENS
    return (
        f"{quantity(len(todo), 'file')}, {_length(seconds)}, {tokens:,.0f} audio tokens, at least "
        f"{quantity(pieces, 'piece')} of up to {_length(limit)}"
    )


def _groups(todo: Sequence[Recording]) -> Iterator[list[Recording]]:
    """Groups of short files, and long ones alone, in order."""
    group: list[Recording] = []
    for recording in todo:
        seconds = sum(r.seconds for r in group) + recording.seconds
        if group and (len(group) == MAX_GROUP_FILES or seconds > MAX_GROUP_SECONDS):
            yield group
            group = []
        group.append(recording)
    if group:
        yield group


def _results(
    group: Sequence[Recording], answers: Callable[[Sequence[Recording]], list[Transcript]]
) -> Iterator[tuple[Recording, Transcript | ValueError]]:
    """Each recording of a group with its transcript, or with the error of reading it."""
    try:
        yield from zip(group, answers(group), strict=True)
        return
    except ValueError as error:
        if len(group) == 1:
            yield group[0], error
            return
    # A damaged file raises while it is read, before any answer; the others are tried one by one.
    for recording in group:
        yield from _results([recording], answers)


def _logger(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _unit(seconds: float) -> tuple[str, int]:
    """The unit in which a length is displayed, and its seconds."""
    return ("minutes", 60) if seconds >= 120 else ("seconds", 1)


def _length(seconds: float) -> str:
    unit, size = _unit(seconds)
    return f"{seconds / size:.1f} {unit}"


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        TextColumn("{task.completed:.1f} of {task.total:.1f} {task.fields[unit]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
