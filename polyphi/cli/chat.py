"""`polyphi chat`: a conversation, or a single prompt."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from polyphi.cli.inputs import (
    STDIN,
    check_first_word,
    check_part,
    piped_text,
    source,
)
from polyphi.cli.load_progress import load_progress, show_placement
from polyphi.cli.model_check import check_model
from polyphi.cli.options import (
    DeviceOption,
    KvOption,
    LoraOption,
    ModalityOption,
    ModelArgument,
    QuantOption,
    console,
    parse_adapters,
)
from polyphi.cli.printable import print_message

if TYPE_CHECKING:
    from polyphi.types.parts import Item

PIPE_SECONDS = 10.0
"""Seconds from the start within which a pipe beside a prompt sends its first byte; the load of the model is part of
them."""


def chat(
    model: ModelArgument,
    prompt: Annotated[
        str | None, Parameter(help="The prompt; without one, a conversation starts.")
    ] = None,
    /,
    *,
    image: Annotated[
        tuple[str, ...], Parameter(help="Image files or http(s) addresses, one or more.")
    ] = (),
    audio: Annotated[
        tuple[str, ...], Parameter(help="Audio files or http(s) addresses, one or more.")
    ] = (),
    video: Annotated[
        tuple[Path, ...], Parameter(help="Video files, sampled as 16 frames each.")
    ] = (),
    detail: Annotated[
        Literal["auto", "low", "high"],
        Parameter(help="Detail of images; low uses few tokens per image."),
    ] = "auto",
    system: Annotated[str | None, Parameter(help="System message.")] = None,
    max_tokens: Annotated[
        PositiveInt, Parameter(help="Maximum number of tokens of an answer.")
    ] = 256,
    temperature: Annotated[
        float,
        Parameter(help="Sampling temperature; 0 is greedy decoding.", validator=Number(gte=0)),
    ] = 0.0,
    top_p: Annotated[
        float,
        Parameter(
            help="Sample from the most likely tokens whose probabilities add up to this.",
            validator=Number(gt=0, lte=1),
        ),
    ] = 1.0,
    seed: Annotated[int, Parameter(help="Seed of sampling, at a temperature above 0.")] = 0,
    adapter: Annotated[
        str,
        Parameter(
            help="auto, none, vision, speech, or another adapter of the model; default: the one of --lora, or auto."
        ),
    ] = "",
    lora: LoraOption = (),
    modality: ModalityOption = (),
    part: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="NAME=PATH", help="A file of a modality that --modality adds; repeatable."
        ),
    ] = (),
    max_audio_seconds: Annotated[
        float,
        Parameter(
            help="Longest audio clip in seconds, up to 10080 (2.8 hours). An hour takes 45,000 tokens, at the "
            "published size 5.9 GB of keys and values; the model was trained on up to 30 minutes."
        ),
    ] = 1800.0,
    device: DeviceOption = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Chat with a model, or answer one prompt: the text of standard input, if it isn't a terminal, then PROMPT. By
    default, the content of a conversation selects the adapter.

    For example:

        polyphi chat nano
        polyphi chat nano "Which digit is it?" --image digit.png
        polyphi chat nano --image a.png b.png "Which digits are they?"
        cat notes.txt | polyphi chat nano "Summarize these notes."
        polyphi chat nano --temperature 0.7 --seed 1 --system "Answer briefly."
        polyphi chat runs/motion/model --modality motion.py --part motion=walk.csv "What is it?"
    """
    from polyphi.media.media import Caps
    from polyphi.types.messages import Message
    from polyphi.types.parts import Audio, Image, Part, Video
    from polyphi.types.sampling import SamplingParams

    began = time.monotonic()
    check_first_word("chat", model, [prompt] if prompt else [])
    adapters = parse_adapters(lora)
    if len(adapters) > 1 and not adapter:
        raise ValueError(f"several --lora need --adapter with one of {', '.join(adapters)}")
    adapter = adapter or next(iter(adapters), "auto")
    caps = Caps.for_audio(max_audio_seconds)
    parts: list[Part] = [
        *(Image(source(name, "image"), detail) for name in image),
        *(Audio(source(name, "audio")) for name in audio),
        *(Video(p, detail=detail) for p in video),
        *(_item(text) for text in part),
    ]
    for one in parts:
        check_part(one, caps)
    is_prompted = prompt is not None or bool(parts)
    piped = piped_text(0.0 if is_prompted else None)
    if not is_prompted and not piped and not os.isatty(STDIN):
        raise ValueError(
            "nothing was piped in; expected a prompt on standard input, or as an argument"
        )

    import polyphi
    from polyphi.cli import terminal
    from polyphi.engine.sampling import check

    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    check(sampling)
    check_model(
        model,
        quant,
        modalities=modality,
        adapter=adapter,
        adapters=adapters,
        parts=parts,
    )
    with load_progress() as progress:
        phi = polyphi.load(
            model,
            device=device,
            quant=quant,
            kv=kv,
            adapters=adapters,
            modalities=modality,
            progress=progress,
        )
    phi.max_audio_seconds = max_audio_seconds
    show_placement(phi)
    if not is_prompted and not piped:
        terminal.Terminal(phi, sampling, adapter, system=system, console=console).run()
        return
    if piped is None:
        piped = piped_text(max(0.0, began + PIPE_SECONDS - time.monotonic()))
        if piped is None:
            print_message(
                f"the pipe on standard input sent nothing for {PIPE_SECONDS:g} s: the prompt is answered without it; "
                "add < /dev/null where there is no text"
            )
    text = "\n\n".join(filter(None, (piped, prompt)))
    question = Message.user(*parts, *([text] if text else []))
    messages = [*([Message.system(system)] if system else []), question]
    try:
        deltas = phi.stream(messages, sampling=sampling, adapter=adapter)
        terminal.once(deltas, console, reasoning=phi.reasoning)
    except KeyboardInterrupt:
        console.print()
        sys.exit(130)


def _item(text: str) -> "Item":
    """The part of a text NAME=PATH."""
    from polyphi.types.parts import Item

    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise ValueError(f"expected --part NAME=PATH, such as motion=walk.csv; found {text!r}")
    return Item(name, Path(path))
