"""`polyphi transcribe`: transcribe and translate audio files."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.errors import OPTIONS
from polyphi.cli.inputs import check_first_word, downloaded, is_address
from polyphi.cli.load_progress import load_progress, show_placement
from polyphi.cli.model_check import check_model
from polyphi.cli.options import (
    DeviceOption,
    KvOption,
    ModelArgument,
    QuantOption,
    console,
    error_console,
)
from polyphi.cli.printable import write_data
from polyphi.transcription.transcript_options import TranscriptOptions
from polyphi.types.parts import Audio


def transcribe(
    model: ModelArgument,
    /,
    *files: Annotated[
        str,
        Parameter(
            help='Audio files, http(s) addresses, folders, or patterns such as "talks/*.mp3".',
            allow_leading_hyphen=True,
        ),
    ],
    options: TranscriptOptions = TranscriptOptions(),  # noqa: B008 - frozen
    out: Annotated[
        Path | None,
        Parameter(help="Folder for the transcripts; the same command keeps finished ones."),
    ] = None,
    words: Annotated[
        bool, Parameter(help="Add word times, estimated from character counts.")
    ] = False,
    aligned: Annotated[
        bool,
        Parameter(help="Add word times from the model's attention; inaccurate on nano."),
    ] = False,
    force: Annotated[
        bool, Parameter(help="Write all transcripts again, also edited ones.")
    ] = False,
    live: Annotated[
        bool,
        Parameter(
            help="Print captions of the microphone, or of audio from a pipe (-): WAV or 16-bit samples.",
        ),
    ] = False,
    sample_rate: Annotated[
        int, Parameter(help="With --live -: sample rate in Hz of 16-bit samples.")
    ] = 16000,
    device: DeviceOption = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Transcribe or translate recordings of any length.

    For example:

        polyphi transcribe nano talk.wav
        polyphi transcribe nano talks/ --out transcripts --format srt --words
        polyphi transcribe nano talk.wav --to German --cot
        polyphi transcribe nano --live
        arecord -q -f S16_LE -r 16000 -c 1 | polyphi transcribe nano --live -
    """
    for name in files:  # a misspelled option, or else "-"
        if name.startswith("--"):
            hint = OPTIONS.get(name.partition("=")[0], f"a file of this name is ./{name}")
            raise ValueError(f"unknown option {name}: {hint}")

    from polyphi.media.media import check_audio_seconds

    check_first_word("transcribe", model, files)
    if live:
        if files not in ((), ("-",)):
            raise ValueError(
                "--live reads the microphone, or - for a pipe; leave --live out to transcribe files"
            )
        if options.cot or out or words or aligned or options.form != "text":
            raise ValueError(
                "--live prints text only: leave out --cot, --out, --words, --aligned and --format"
            )
        _transcribe_live(
            model,
            "-" if files else None,
            options,
            sample_rate=sample_rate,
            device=device,
            quant=quant,
            kv=kv,
        )
        return
    if not files:
        raise ValueError("expected audio files, folders or patterns, or --live")
    check_audio_seconds(options.max_audio_seconds)
    with TemporaryDirectory() as temporary:
        local = [
            downloaded(name, Path(temporary, str(number))) if is_address(name) else name
            for number, name in enumerate(files)
        ]
        _transcribe_files(
            model,
            local,
            replace(options, words="aligned" if aligned else "estimated" if words else None),
            out,
            force=force,
            device=device,
            quant=quant,
            kv=kv,
        )


def _transcribe_files(
    model: str,
    files: Sequence[str],
    options: TranscriptOptions,
    out: Path | None,
    *,
    force: bool,
    device: str,
    quant: str | None,
    kv: str | None,
) -> None:
    """Transcribe what isn't transcribed yet; exits with 1 if a file fails. The model is loaded only for files that can
    be read."""
    from polyphi.transcription.recordings import find, select, targets

    recordings = targets(find(files, error_console), out, options.form)
    if out is None and options.form != "text" and len(recordings) > 1:
        raise ValueError(f"{len(recordings)} files as {options.form} need a folder: add --out DIR")
    if out is not None:  # its transcripts depend on the model
        from polyphi.hub.fingerprint import fingerprint
        from polyphi.hub.location import locate

        options = replace(options, model=f"{fingerprint(locate(model))} {quant} {kv}")
    todo, failed = select(recordings, options, force=force, console=error_console)
    if todo:
        import polyphi
        from polyphi.transcription.transcript_files import transcribe_files

        check_model(model, quant, adapter=options.adapter, parts=[Audio(todo[0].path)])
        with load_progress() as progress:
            phi = polyphi.load(model, device=device, quant=quant, kv=kv, progress=progress)
        phi.max_audio_seconds = options.max_audio_seconds
        show_placement(phi)
        failed += transcribe_files(
            phi.engine,
            todo,
            options,
            write=lambda text: write_data(console, f"{text}\n"),
            console=error_console,
        )
    if failed:
        sys.exit(1)


def _transcribe_live(
    model: str,
    source: str | None,
    options: TranscriptOptions,
    *,
    sample_rate: int,
    device: str,
    quant: str | None,
    kv: str | None,
) -> None:
    """Print captions of the microphone (None) or of standard input ("-"); exits with 1 if a part fails."""
    import polyphi
    from polyphi.cli.captions import transcribe_live
    from polyphi.transcription.capture import sound_devices

    if source is None:
        sound_devices()  # an error before the model is loaded
    check_model(model, quant, adapter=options.adapter, parts=[Audio(b"")])
    with load_progress() as progress:
        phi = polyphi.load(model, device=device, quant=quant, kv=kv, progress=progress)
    show_placement(phi)
    if not transcribe_live(
        phi.engine,
        source,
        raw_rate=sample_rate,
        to=options.to,
        adapter=options.adapter,
        console=console,
    ):
        sys.exit(1)
