"""Many recordings to files: what `polyphi transcribe` does beside asking the model.

What there is to do is told first (minutes, tokens, pieces). Short files are answered together. Each result is written
at once and whole, so that a run that was stopped goes on where it was; a file that can't be read is told, and the
others go on.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polyphi.engine.engine import Engine
from polyphi.messages import Message, Transcript
from polyphi.processing.media import AUDIO_FORMATS, SNIFF_BYTES, AudioStream, sniff
from polyphi.runtime.files import write_whole
from polyphi.transcription import longform, subtitles

SUFFIXES = {
    "text": ".txt",
    "json": ".json",
    "verbose_json": ".verbose.json",
    "srt": ".srt",
    "vtt": ".vtt",
}
FILES_TOGETHER, SECONDS_TOGETHER = 32, 600.0  # of short files, answered and written together


@dataclass(frozen=True)
class Recording:
    """A file, where its transcript goes (None: standard output), and its seconds as its header says."""

    path: Path
    target: Path | None
    seconds: float = 0.0


def find(names: Sequence[str]) -> list[tuple[Path, Path]]:
    """(file, the folder its name is told from) for files, folders and patterns such as "talks/**/*.mp3", in order and
    once each. Of a folder every clip at any depth, known by its first bytes. A file that isn't there stays, to be told
    as that. Raises ValueError for a folder or a pattern with nothing in it."""
    found: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [(p, path) for p in sorted(path.rglob("*")) if p.is_file() and _is_clip(p)]
        elif not path.exists() and any(c in name for c in "*?["):
            root = Path(path.anchor or ".")
            pattern = str(path.relative_to(root)) if path.anchor else name
            inside = [(p, p.parent) for p in sorted(root.glob(pattern)) if p.is_file()]
        else:
            inside = [(path, path.parent)]
        if not inside:
            raise ValueError(f"{name}: expected recordings, found none")
        for file, folder in inside:
            found.setdefault(file, folder)
    return list(found.items())


def _is_clip(path: Path) -> bool:
    with path.open("rb") as file:
        return sniff(file.read(SNIFF_BYTES)) in AUDIO_FORMATS


def targets(files: Sequence[tuple[Path, Path]], out: Path | None, form: str) -> list[Recording]:
    """Where each transcript goes: the file's name with another ending, in its folder's place below `out`; where two
    would be the same (a.wav, a.mp3), the ending is added to the whole name. Raises ValueError where even that leaves
    two the same."""
    if out is None:
        return [Recording(path, None) for path, _ in files]
    inner = [path.relative_to(folder) for path, folder in files]
    short = Counter(path.with_suffix("") for path in inner)
    names = [p if short[p.with_suffix("")] > 1 else p.with_suffix("") for p in inner]
    places = [out / name.with_name(name.name + SUFFIXES[form]) for name in names]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        same = [str(f) for (f, _), place in zip(files, places, strict=True) if place == twice[0]]
        raise ValueError(
            f"{' and '.join(same)} would both be written to {twice[0]}; transcribe them one after the other"
        )
    return [Recording(path, place) for (path, _), place in zip(files, places, strict=True)]


def transcribe_files(
    engine: Engine,
    recordings: Sequence[Recording],
    *,
    form: str = "text",
    to: str | None = None,
    cot: bool = False,
    adapter: str | None = "auto",
    words: Literal["estimated", "aligned"] | None = None,
    window: float | None = None,
    force: bool = False,
    write: Callable[[str], None] = print,
    console: Console | None = None,
) -> int:
    """Transcribe what isn't there yet (all of it with `force`); how many files failed. `write` gets what has no file to
    go to; plan, progress, warnings and failures go to `console`. Options as in `Phi.transcribe`, which says what else
    raises ValueError."""
    console = console or Console(stderr=True)
    say = _teller(console)
    task = replace(longform.transcription(to, cot), adapter=adapter, words=words)
    if engine.model.config.audio is None:
        raise ValueError("this model has no audio encoder; it can't transcribe")
    engine.row([Message.user(task.prompt)], adapter=adapter)  # an unknown adapter is told once
    limit = longform.longest_piece(engine, task, window)
    todo, failed = [], 0
    done = [r for r in recordings if r.target is not None and r.target.exists() and not force]
    for recording in recordings:
        if recording in done:
            continue
        try:
            stream = AudioStream(recording.path, max_seconds=longform.LONGEST_RECORDING)
        except ValueError as error:
            failed += 1
            say(f"failed: {error}")
            continue
        # Programs that stream don't know how long their recording will be.
        seconds = stream.announced / stream.rate if stream.announced < 2**60 else 0.0
        todo.append(replace(recording, seconds=seconds))
    if len(recordings) > 1 or any(r.seconds > limit for r in todo):
        say(_plan(todo, len(done), limit))
    with _progress(console) as progress:
        bar = progress.add_task("", total=sum(r.seconds for r in todo) / 60)

        def tell(seconds: float) -> None:
            progress.advance(bar, seconds / 60)

        def answers(group: Sequence[Recording]) -> list[Transcript]:
            paths = [recording.path for recording in group]
            return longform.transcribe(engine, paths, task, window=window, tell=tell)

        for group in _groups(todo):
            for recording, found in _survivors(group, answers):
                if isinstance(found, ValueError):
                    failed += 1
                    say(f"failed: {found}")
                    continue
                _put(recording, found, form, write, named=len(recordings) > 1)
                for warning in found.warnings:
                    say(f"{recording.path}: warning: {warning}")
    return failed


def _plan(todo: Sequence[Recording], done: int, limit: float) -> str:
    seconds = sum(r.seconds for r in todo)
    pieces = sum(max(1, -(-r.seconds // limit)) for r in todo)
    tokens = seconds * longform.AUDIO_TOKENS
    kept = f"; {done} are there already" if done else ""
    return (
        f"{len(todo)} files, {seconds / 60:.1f} minutes, {tokens:,.0f} audio tokens, at least {pieces:.0f} pieces "
        f"of up to {limit / 60:.1f} minutes{kept}"
    )


def _groups(todo: Sequence[Recording]) -> Iterator[list[Recording]]:
    """Short files together, long ones alone, in order."""
    group: list[Recording] = []
    for recording in todo:
        seconds = sum(r.seconds for r in group) + recording.seconds
        if group and (len(group) == FILES_TOGETHER or seconds > SECONDS_TOGETHER):
            yield group
            group = []
        group.append(recording)
    if group:
        yield group


def _survivors(
    group: Sequence[Recording], answers: Callable[[Sequence[Recording]], list[Transcript]]
) -> Iterator[tuple[Recording, Transcript | ValueError]]:
    """Each recording of a group with its transcript, or with why it can't be read."""
    try:
        yield from zip(group, answers(group), strict=True)
        return
    except ValueError as error:
        if len(group) == 1:
            yield group[0], error
            return
    # A damaged file is found while it's read, before anything is answered; the others don't wait for it.
    for recording in group:
        yield from _survivors([recording], answers)


def _put(
    recording: Recording, found: Transcript, form: str, write: Callable[[str], None], named: bool
) -> None:
    text = subtitles.write(found, form)
    if recording.target is None:
        name = f"{recording.path}: " if named else ""
        write(name + text.rstrip("\n"))
        return
    recording.target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(recording.target, text)


def _teller(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        TextColumn("{task.completed:.1f} of {task.total:.1f} minutes"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
