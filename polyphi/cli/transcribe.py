"""`polyphi transcribe`: transcribe and translate audio files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from polyphi.cli.options import KvOption, ModelArgument, QuantOption, console, show_placement


def transcribe(
    model: ModelArgument,
    files: Annotated[
        list[str], typer.Argument(help='Audio files, folders, or patterns such as "talks/*.mp3".')
    ],
    to: Annotated[
        str | None, typer.Option(help="Translate into this language, such as German.")
    ] = None,
    cot: Annotated[
        bool, typer.Option("--cot", help="Transcribe first, then translate (chain of thought).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the transcripts; the same command resumes.")
    ] = None,
    form: Annotated[
        Literal["text", "json", "verbose_json", "srt", "vtt"],
        typer.Option("--format", help="text, json, verbose_json, srt or vtt."),
    ] = "text",
    words: Annotated[
        bool, typer.Option("--words", help="Add word times, estimated from character counts.")
    ] = False,
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned", help="Add word times from the model's attention; inaccurate on nano."
        ),
    ] = False,
    window: Annotated[
        float | None,
        typer.Option(help="Maximum seconds of a segment, such as 30; default: as long as fits."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also transcribe files that have a transcript.")
    ] = False,
    adapter: Annotated[str, typer.Option(help="auto, none, or an adapter of the model.")] = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Transcribe or translate recordings of any length.

    \b
    Examples:
      polyphi transcribe runs/nano/model talk.wav
      polyphi transcribe runs/nano/model talks/ --out transcripts --format srt --words
      polyphi transcribe runs/nano/model talk.wav --to German --cot
    """
    import polyphi
    from polyphi.transcription.files import find, targets, transcribe_files

    if cot and to is None:
        raise ValueError("--cot needs a translation: add --to LANGUAGE")
    recordings = targets(find(files), out, form)
    if out is None and form != "text" and len(recordings) > 1:
        raise ValueError(f"{len(recordings)} files as {form} need a folder: add --out DIR")
    phi = polyphi.load(model, quant=quant, kv=kv)
    show_placement(phi)
    failed = transcribe_files(
        phi.engine,
        recordings,
        form=form,
        to=to,
        cot=cot,
        adapter=adapter,
        words="aligned" if aligned else "estimated" if words else None,
        window=window,
        force=force,
        write=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )
    if failed:
        raise typer.Exit(1)
