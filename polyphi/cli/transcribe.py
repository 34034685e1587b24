"""`polyphi transcribe`: transcribe and translate audio files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from polyphi.cli.options import (
    KvOption,
    ModelArgument,
    QuantOption,
    console,
    error_console,
    load_progress,
    show_placement,
)
from polyphi.cli.printable import write_data


def transcribe(
    model: ModelArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(help='Audio files, folders, or patterns such as "talks/*.mp3".'),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Translate into this language, such as German.")
    ] = None,
    cot: Annotated[
        bool, typer.Option("--cot", help="Transcribe first, then translate (chain of thought).")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the transcripts; the same command keeps those that are done."
        ),
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
        bool, typer.Option("--force", help="Write all transcripts anew, edited ones too.")
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Captions of the microphone, or of audio from a pipe (-): WAV or 16-bit samples.",
        ),
    ] = False,
    sample_rate: Annotated[
        int, typer.Option(help="With --live -: samples a second, unless the audio is WAV.")
    ] = 16000,
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
      polyphi transcribe runs/nano/model --live
      arecord -q -f S16_LE -r 16000 -c 1 | polyphi transcribe runs/nano/model --live -
    """
    import polyphi
    from polyphi.cli.captions import transcribe_live
    from polyphi.transcription.capture import sound_devices
    from polyphi.transcription.files import TranscriptOptions, find, targets, transcribe_files

    if cot and to is None:
        raise ValueError("--cot needs a translation: add --to LANGUAGE")
    if live:
        if files not in (None, [], ["-"]):
            raise ValueError(
                "--live reads the microphone, or - for a pipe; leave --live out to transcribe files"
            )
        if cot or out or words or aligned or form != "text":
            raise ValueError(
                "--live prints text only: leave out --cot, --out, --words, --aligned and --format"
            )
        source = "-" if files else None
        if source is None:
            sound_devices()  # an error before the model is loaded
        with load_progress() as progress:
            phi = polyphi.load(model, quant=quant, kv=kv, progress=progress)
        show_placement(phi)
        if not transcribe_live(
            phi.engine, source, raw_rate=sample_rate, to=to, adapter=adapter, console=console
        ):
            raise typer.Exit(1)
        return
    if not files:
        raise ValueError("expected audio files, folders or patterns, or --live")
    recordings = targets(find(files), out, form)
    if out is None and form != "text" and len(recordings) > 1:
        raise ValueError(f"{len(recordings)} files as {form} need a folder: add --out DIR")
    with load_progress() as progress:
        phi = polyphi.load(model, quant=quant, kv=kv, progress=progress)
    show_placement(phi)
    options = TranscriptOptions(
        form,
        to,
        cot,
        adapter,
        words="aligned" if aligned else "estimated" if words else None,
        window=window,
        model=f"{phi.fingerprint} {quant} {kv}",
    )
    failed = transcribe_files(
        phi.engine,
        recordings,
        options,
        force=force,
        write=lambda text: write_data(console, f"{text}\n"),
        console=error_console,
    )
    if failed:
        raise typer.Exit(1)
