"""`polyphi chat`: a conversation, or a single prompt."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.options import (
    KvOption,
    ModalityOption,
    ModelArgument,
    QuantOption,
    console,
    load_progress,
    show_placement,
)

if TYPE_CHECKING:
    from polyphi.messages import Item


def chat(
    model: ModelArgument,
    prompt: Annotated[
        str | None, Parameter(help="A single prompt; without it, a conversation.")
    ] = None,
    /,
    *,
    image: Annotated[tuple[Path, ...], Parameter(help="An image file; repeatable.")] = (),
    audio: Annotated[tuple[Path, ...], Parameter(help="An audio file; repeatable.")] = (),
    video: Annotated[
        tuple[Path, ...], Parameter(help="A video file, sampled as 16 frames; repeatable.")
    ] = (),
    detail: Annotated[
        Literal["auto", "low", "high"], Parameter(help="low: few tokens per image.")
    ] = "auto",
    max_tokens: int = 256,
    temperature: float = 0.0,
    adapter: Annotated[
        str, Parameter(help="auto, none, vision, speech, or another adapter of the model.")
    ] = "auto",
    modality: ModalityOption = (),
    part: Annotated[
        tuple[str, ...],
        Parameter(metavar="NAME=PATH", help="A file of a further modality; repeatable."),
    ] = (),
    max_audio_seconds: Annotated[
        float,
        Parameter(
            help="Longest audio clip in seconds, up to 10080 (2.8 hours). An hour takes 45,000 tokens, at the "
            "published size 5.9 GB of keys and values; the model was trained up to 30 minutes."
        ),
    ] = 1800.0,
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Chat with a model, or answer a single prompt: PROMPT, or standard input if it is piped. By default, the message's
    modalities select the adapter.

    For example:

        polyphi chat runs/nano/model
        polyphi chat runs/nano/model "Which digit is it?" --image digit.png
        polyphi chat runs/nano/mini --temperature 0.7
        polyphi chat runs/motion/model --modality motion.py --part motion=walk.csv "What is it?"
    """
    import polyphi
    from polyphi.cli import terminal
    from polyphi.engine.media import check_audio_seconds
    from polyphi.messages import Audio, Image, Message, Part, SamplingParams, Video

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    parts: list[Part | str] = [
        *(Image(p, detail) for p in image),
        *(Audio(p) for p in audio),
        *(Video(p, detail=detail) for p in video),
        *(_item(text) for text in part),
    ]
    if prompt is None and not parts and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise ValueError(
                "nothing was piped in; expected a prompt on standard input, or as an argument"
            )
    check_audio_seconds(max_audio_seconds)  # before the weights are read
    with load_progress() as progress:
        phi = polyphi.load(model, quant=quant, kv=kv, modalities=modality, progress=progress)
    phi.max_audio_seconds = max_audio_seconds
    show_placement(phi)
    if prompt is None and not parts:
        terminal.Terminal(phi, sampling, adapter, console=console).run()
        return
    messages = [Message.user(*parts, *([prompt] if prompt else []))]
    try:
        deltas = phi.stream(messages, sampling=sampling, adapter=adapter)
        terminal.once(deltas, console, reasoning=phi.reasoning)
    except KeyboardInterrupt:
        console.print()
        sys.exit(130)


def _item(text: str) -> "Item":
    """The part of a text NAME=PATH."""
    from polyphi.messages import Item

    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise ValueError(f"expected --part NAME=PATH, such as motion=walk.csv; found {text!r}")
    return Item(name, Path(path))
