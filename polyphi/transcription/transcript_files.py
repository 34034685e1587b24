"""Many recordings to transcript files, for `polyphi transcribe`.

The recordings were selected before the model was loaded (recordings.py). It prints a plan first (minutes, tokens,
chunks). Short files run in one batch. Each result is written atomically when its group is done, so that a stopped run
resumes: a transcript of the same recording, model and options is kept (record.py). A file that is damaged is reported,
and the others continue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polyphi.engine.engine import Engine
from polyphi.text.quantity import quantity
from polyphi.transcription import longform, record, subtitles
from polyphi.transcription.recordings import Recording, logger
from polyphi.transcription.transcript_options import TranscriptOptions
from polyphi.types.messages import Message
from polyphi.types.transcript import Transcript

MAX_GROUP_FILES, MAX_GROUP_SECONDS = 32, 600.0  # of short files that run and are written together


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
    log = logger(console)
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
        f"{quantity(pieces, 'chunk')} of up to {_length(limit)}"
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
