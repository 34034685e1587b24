"""The command line: one short function per verb. A wrong argument is one clear line and exit code 2; a failed run,
1."""

import errno
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="polyphi",
    help="Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
ModelArgument = Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")]


@app.command()
def reproduce(
    size: Annotated[str, typer.Argument(help="micro, nano, lab or full.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same folder goes on where it stopped.")
    ],
    seed: int = 0,
    precision: Annotated[
        str, typer.Option(help="bf16 or fp32 arithmetic in training; weights stay fp32.")
    ] = "bf16",
) -> None:
    """The whole recipe: data, tokenizer, sixteen stages, evaluation and a report page."""
    from polyphi.reproduce.graph import Run

    page = Run(size, out, seed=seed, precision=_precision(precision), console=console).reproduce()
    console.print(f"\nreport  {page}\ntalk    polyphi chat {out / 'model'}")


@app.command()
def train(
    names: Annotated[
        list[str], typer.Argument(metavar="STAGE...", help="Stages, such as speech_2_post.")
    ],
    size: Annotated[str, typer.Option(help="micro, nano, lab or full.")] = "nano",
    out: Annotated[
        Path, typer.Option(help="Folder of the run that holds its data and its parent stages.")
    ] = Path("runs/nano"),
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="bf16 or fp32 arithmetic.")] = "bf16",
) -> None:
    """One stage or several, after the corpora and parent stages that they need."""
    from polyphi import stages
    from polyphi.reproduce.graph import Run

    for name in names:
        stages.load(name)  # a misspelt name is told before the first hour of training
    run = Run(size, out, seed=seed, precision=_precision(precision), console=console)
    for name in names:
        run.train(name)


@app.command()
def curate(
    corpus: Annotated[
        str, typer.Argument(help="Name of a corpus, or `show` to list what a run holds.")
    ],
    size: Annotated[str, typer.Option(help="micro, nano, lab or full.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/nano"),
    seed: int = 0,
) -> None:
    """Build one corpus of a run, or show what is there."""
    from polyphi.reproduce.graph import Run

    run = Run(size, out, seed=seed, console=console)
    if corpus == "show":
        run.show()
    else:
        run.build(corpus)


@app.command()
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
    max_tokens: int = 256,
    temperature: float = 0.0,
    adapter: Annotated[str, typer.Option(help="auto, none, vision or speech.")] = "auto",
) -> None:
    """Talk to a model; the adapter follows from what the message holds."""
    import polyphi
    from polyphi.chat import Audio, Image, Message, Part, SamplingParams, Text

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    chosen = None if adapter == "none" else adapter
    media: list[Part] = [*(Image(p) for p in image or ()), *(Audio(p) for p in audio or ())]
    phi = polyphi.load(model)

    def answer(messages: list[Message]) -> str:
        text = ""
        for delta in phi.stream(messages, sampling=sampling, adapter=chosen):
            text += delta.text
            console.print(delta.text, end="", markup=False, highlight=False, soft_wrap=True)
        console.print()
        return text

    if prompt is not None or media:
        answer([Message("user", (*media, *([Text(prompt)] if prompt else [])))])
        return
    history: list[Message] = []
    console.print("[dim]An empty line or Ctrl-D ends the conversation.[/dim]")
    while (line := _ask()) is not None:
        history.append(Message.user(line))
        history.append(Message.assistant(answer(history)))


def _ask() -> str | None:
    try:
        return console.input("[bold]> [/bold]").strip() or None
    except EOFError:
        return None


@app.command()
def transcribe(
    model: ModelArgument,
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    to: Annotated[
        str | None, typer.Option(help="Translate into this language, such as German.")
    ] = None,
    cot: Annotated[
        bool, typer.Option("--cot", help="Transcribe first, then translate (chain of thought).")
    ] = False,
) -> None:
    """Write down, or translate, what is said in audio files."""
    import polyphi

    if cot and to is None:
        raise ValueError("--cot is for translation: give --to LANGUAGE as well")
    phi = polyphi.load(model)
    for file in files:
        result = phi.transcribe(file, to=to, cot=cot)
        name = f"{file}: " if len(files) > 1 else ""
        text = (
            f"{result.text}\n{result.translation}"
            if cot
            else result.translation
            if to
            else result.text
        )
        console.print(f"{name}{text}", markup=False, highlight=False, soft_wrap=True)
        for warning in result.warnings:
            print(f"{name}warning: {warning}", file=sys.stderr)


@app.command()
def inspect(
    model: ModelArgument,
    logits: Annotated[
        Path | None, typer.Option(help="A request.json whose logits to write.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .safetensors file for --logits.")] = None,
) -> None:
    """Parts and parameters beside the report's; with --logits, exact numbers for comparison."""
    import polyphi
    from polyphi import inspection
    from polyphi.model import weights

    if (logits is None) != (out is None):
        raise ValueError("--logits request.json and --out file.safetensors belong together")
    if logits is not None and out is not None:
        tokens, vocabulary = inspection.write_logits(polyphi.load(model), logits, out)
        console.print(f"wrote {out}: {tokens} positions, {vocabulary} scores each", highlight=False)
        return
    table = Table("part", "parameters", "report", box=None, padding=(0, 2))
    for part in inspection.parts(weights.read_config(model)):
        table.add_row(
            part.name, f"{part.parameters:,}", f"{part.report:.3g}" if part.report else ""
        )
    console.print(table)


@app.command()
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    layout: Annotated[str, typer.Option(help="native, original or mini.")] = "native",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")
    ] = None,
) -> None:
    """Write a checkpoint in one of the public layouts."""
    from polyphi.model import weights
    from polyphi.phi import as_dtype

    folder = weights.locate(model)
    tokenizer = [
        p
        for p in (folder / name for name in ("tokenizer.json", "tokenizer_config.json"))
        if p.exists()
    ]
    weights.save(
        weights.load(folder), out, layout, dtype=as_dtype(dtype) if dtype else None, files=tokenizer
    )
    console.print(f"wrote {out} ({layout})")


@app.command()
def plan(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE...]", help="Stages; all without.")
    ] = None,
    size: Annotated[str, typer.Option(help="micro, nano, lab or full.")] = "full",
    devices: Annotated[
        str, typer.Option(help="Number and name: A100, H100, H200, B200, L4 or cpu.")
    ] = "64xH100",
    shard: Annotated[
        int, typer.Option(help="Devices that share the decoder's layers among them.")
    ] = 1,
    micro_tokens: Annotated[int, typer.Option(help="Tokens of a pack.")] = 8192,
    activations: Annotated[str, typer.Option(help="keep or recompute.")] = "keep",
    utilisation: Annotated[
        float, typer.Option(help="Share of the devices' peak that training reaches.")
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Of a device's hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take two steps on tensors without memory.")
    ] = False,
) -> None:
    """What stages cost before they run: memory, FLOPs, communication, time, money."""
    from polyphi import cost, stages
    from polyphi import plan as planning
    from polyphi.stages import sizes

    if activations not in ("keep", "recompute"):
        raise ValueError(f"activations are keep or recompute, found {activations!r}")
    on = cost.Switches(shard, micro_tokens, activations)  # type: ignore[arg-type]
    chosen, table = names or list(stages.ORDER), sizes.load(size)
    if dry_run:
        from polyphi.dry_run import told

        for name in chosen:
            console.print(told(cost.subject(name, table), shard), highlight=False)
        return
    plans = [
        planning.plan(name, table, devices, on, utilisation=utilisation, price=price)
        for name in chosen
    ]
    if as_json:
        print(json.dumps([asdict(p) | {"cost": p.cost} for p in plans], indent=1))
        return
    for line in planning.page(plans):
        console.print(line, highlight=False, soft_wrap=isinstance(line, str))


evaluation = typer.Typer(
    name="eval",
    help="Measure a model on held-out data, or score recorded answers again.",
    no_args_is_help=True,
)
app.add_typer(evaluation)


@evaluation.command("run")
def eval_run(
    out: Annotated[Path, typer.Argument(help="Folder of a run (its model, its data).")],
    tasks: Annotated[list[str] | None, typer.Argument(help="Names of tasks; all without.")] = None,
    size: Annotated[str, typer.Option(help="micro, nano, lab or full.")] = "nano",
    seed: int = 0,
) -> None:
    """Measure a run's models on the held-out splits, with baselines."""
    from polyphi.reproduce.graph import Run

    Run(size, out, seed=seed, console=console).evaluate(*tasks or ())


@evaluation.command("score")
def eval_score(
    folder: Annotated[Path, typer.Argument(help="Folder with the per-sample .jsonl files.")],
) -> None:
    """Compute every score again from recorded answers, without the model."""
    from polyphi.eval.run import rescore

    print(json.dumps(rescore(folder), indent=1, ensure_ascii=False))


def _precision(name: str) -> Literal["bf16", "fp32"]:
    if name not in ("bf16", "fp32"):
        raise ValueError(f"precision is bf16 or fp32, found {name!r}")
    return name  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors that users can mend become one line."""
    try:
        app(arguments, standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        code = (
            2
            if isinstance(error, ValueError | FileNotFoundError)
            else 1
            if isinstance(error, OSError | RuntimeError)
            else None
        )
        if hasattr(error, "exit_code"):  # a usage error, which click words itself
            error.show()  # type: ignore[attr-defined]
            sys.exit(error.exit_code)
        if code is None:
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free some space and run the same command again, nothing is lost" if full else ""
        print(f"polyphi: {error}{advice}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
