"""`polyphi chat`: a conversation, or one question."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from polyphi.cli.options import KvOption, ModelArgument, QuantOption, console, show_placement


def chat(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(help="One question; without it, a conversation.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture; may be given several times.")
    ] = None,
    audio: Annotated[
        list[Path] | None, typer.Option(help="A clip; may be given several times.")
    ] = None,
    video: Annotated[
        list[Path] | None, typer.Option(help="A video, seen as 16 of its frames; likewise.")
    ] = None,
    detail: Annotated[
        Literal["auto", "low", "high"], typer.Option(help="low shows pictures in few tokens.")
    ] = "auto",
    max_tokens: int = 256,
    temperature: float = 0.0,
    adapter: Annotated[
        str, typer.Option(help="auto, none, vision, speech, or a sibling that the model has.")
    ] = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Talk to a model, or ask it one question: PROMPT, or what is piped in. The adapter follows from what the message
    holds."""
    import polyphi
    from polyphi.cli import terminal
    from polyphi.messages import Audio, Image, Message, Part, SamplingParams, Video

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    chosen = None if adapter == "none" else adapter
    asked: list[Part | str] = [
        *(Image(p, detail) for p in image or ()),
        *(Audio(p) for p in audio or ()),
        *(Video(p, detail=detail) for p in video or ()),
    ]
    if prompt is None and not asked and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise ValueError("nothing was piped in; expected a question")
    phi = polyphi.load(model, quant=quant, kv=kv)
    show_placement(phi)
    if prompt is None and not asked:
        terminal.Terminal(phi, sampling, chosen, console=console).run()
        return
    messages = [Message.user(*asked, *([prompt] if prompt else []))]
    try:
        terminal.once(phi.stream(messages, sampling=sampling, adapter=chosen), console)
    except KeyboardInterrupt:
        console.print()
        raise typer.Exit(130) from None
