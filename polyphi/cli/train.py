"""`polyphi train`: train stages of the recipe, or a custom stage from a public checkpoint."""

import difflib
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polyphi.cli.options import (
    MACHINE,
    OWN,
    PrecisionOption,
    PublicOption,
    PushOption,
    SizeOption,
    console,
)


def train(
    names: Annotated[
        list[str],
        typer.Argument(metavar="STAGE...", help="Stages, such as speech_2_post, or a stage file."),
    ],
    size: SizeOption = "nano",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; default: runs/nano, or runs/NAME for a custom stage."
        ),
    ] = None,
    seed: int = 0,
    precision: PrecisionOption = "auto",
    micro_tokens: Annotated[
        int, typer.Option(help="Maximum tokens of a pack (micro-batch).", rich_help_panel=MACHINE)
    ] = 8192,
    micro_crops: Annotated[
        int | None,
        typer.Option(
            help="Maximum crops of a pack; default: no separate limit.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    micro_frames: Annotated[
        int | None,
        typer.Option(
            help="Maximum audio frames (10 ms) of a pack; default: no separate limit.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read and decode data; default: 0 on a CPU, several with a GPU.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    fsdp: Annotated[
        int,
        typer.Option(
            help="Shards of the decoder's layers, over torchrun's processes.",
            rich_help_panel=MACHINE,
        ),
    ] = 1,
    context_parallel: Annotated[
        int,
        typer.Option(
            help="Processes to split each pack of long text over (context parallelism).",
            rich_help_panel=MACHINE,
        ),
    ] = 1,
    base: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(
            help="Quantize the frozen weights (QLoRA): less memory.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    activations: Annotated[
        Literal["keep", "recompute", "offload"],
        typer.Option(
            help="keep, recompute (less memory, more time) or offload.", rich_help_panel=MACHINE
        ),
    ] = "keep",
    features: Annotated[
        Path | None,
        typer.Option(
            help="Cache outputs of frozen encoders in this folder.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    background: Annotated[
        bool,
        typer.Option(
            "--background", help="Write checkpoints in the background.", rich_help_panel=MACHINE
        ),
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Use only deterministic kernels.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    spike: Annotated[
        float | None,
        typer.Option(
            help="Reject steps with a gradient norm this many times the median, such as 10.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    on_spike: Annotated[
        Literal["skip", "roll-back"],
        typer.Option(
            help="skip the rejected step, or roll-back to the last checkpoint.",
            rich_help_panel=MACHINE,
        ),
    ] = "skip",
    watch_every: Annotated[
        int,
        typer.Option(
            help="Steps between evaluations of the stage's held-out tasks; 0: none.",
            rich_help_panel=MACHINE,
        ),
    ] = 0,
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, trackio or wandb; repeatable.", rich_help_panel=MACHINE),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint to start from: folder or hub id.", rich_help_panel=OWN),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=".jsonl, .parquet, a folder or hf:owner/name; CORPUS=... for several.",
            rich_help_panel=OWN,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Column names of the data, such as answer=text,audio=clip; CORPUS.answer=... for several.",
            rich_help_panel=OWN,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip invalid rows.", rich_help_panel=OWN),
    ] = False,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows to evaluate the loss on during training, in the form of --data.",
            rich_help_panel=OWN,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between these evaluations; default: a tenth of all.",
            rich_help_panel=OWN,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after this many evaluations without a lower loss; the best step is exported.",
            rich_help_panel=OWN,
        ),
    ] = None,
    push_to_hub: PushOption = None,
    public: PublicOption = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps; default: the stage's.", rich_help_panel=OWN)
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a step; default: the stage's.", rich_help_panel=OWN),
    ] = None,
    lr_factor: Annotated[
        float, typer.Option(help="Factor for the stage's learning rates.", rich_help_panel=OWN)
    ] = 1.0,
) -> None:
    """Train stages of the recipe, after the corpora and parent stages that they need; or a custom stage from a public
    checkpoint: polyphi train my_stage.py --model CHECKPOINT --data mine.jsonl (docs/finetune.md).

    \b
    Examples:
      polyphi train vision_3_generative --out runs/nano
      polyphi train speech_2_post --size micro --out runs/micro
      polyphi train examples/finetune_vision.py --model runs/nano/model --data rows.jsonl
    """
    from polyphi.train.interrupt import record_interrupts
    from polyphi.train.options import MachineOptions, StepGuard, TrainOptions

    record_interrupts()
    machine = MachineOptions(
        micro_tokens=micro_tokens,
        micro_crops=micro_crops,
        micro_frames=micro_frames,
        workers=workers,
        fsdp=fsdp,
        context_parallel=context_parallel,
        activations=activations,
        features=features,
        background=background,
        deterministic=deterministic,
        guard=StepGuard(spike, on_spike),
    )
    if any(name.endswith(".py") for name in names):
        from polyphi.checkpoints import hub, model_card
        from polyphi.checkpoints.read import read_layout
        from polyphi.runtime import distributed
        from polyphi.train.finetune import finetune
        from polyphi.train.monitor import Monitor

        if len(names) > 1:
            raise ValueError(f"expected one stage file at a time, found {', '.join(names)}")
        target = hub.target(push_to_hub, public)
        distributed.start()
        if target and distributed.rank() == 0:
            hub.prepare(target)
        folder = finetune(
            Path(names[0]),
            data or (),
            out,
            checkpoint=model,
            steps=steps,
            batch_tokens=batch_tokens,
            lr_factor=lr_factor,
            columns=parse_pairs(columns),
            skip_bad=skip_bad,
            monitor=Monitor(eval_data or (), eval_every, patience),
            options=TrainOptions(
                seed=seed,
                precision=precision,
                base=base,
                track=track or (),
                machine=machine,
            ),
            report=lambda text: console.print(text, highlight=False, soft_wrap=True),
        )
        if target and distributed.rank() == 0:
            model_card.write(folder, read_layout(folder), push_to_hub)
            console.print(f"pushed to {hub.push(folder, target)}")
        return
    own_only = (
        model,
        data,
        columns,
        steps,
        batch_tokens,
        eval_data,
        eval_every,
        patience,
        push_to_hub,
    )
    if any(own_only):
        raise ValueError(
            "--model, --data, --columns, --eval-data, --eval-every, --patience, --steps, --batch-tokens and "
            f"--push-to-hub need a stage of your own, in a .py file; found the recipe's {names[0]}"
        )
    train_named(
        names,
        out,
        size=size,
        seed=seed,
        precision=precision,
        base=base,
        watch_every=watch_every,
        track=track or (),
        machine=machine,
    )


def train_named(names: list[str], out: Path | None, **options: Any) -> None:
    """Train stages of other packages, entry points of the group `polyphi.stages`: of their name, and the function that
    trains stages after what they need. Raises ValueError with the nearest name for an unknown one."""
    points = {point.name: point for point in metadata.entry_points(group="polyphi.stages")}
    for name in names:
        if name not in points:
            near = difflib.get_close_matches(name, points, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown stage {name!r}; did you mean {near[0]!r}? The stages are: {', '.join(points)}"
                if near
                else f"unknown stage {name!r}: expected a stage's .py file, since no installed package names stages"
            )
    for name in names:
        points[name].load()(name, out, **options)


def parse_pairs(columns: str | None) -> dict[str, str]:
    """The mapping in a text like `answer=text,audio=clip`."""
    pairs = [pair.partition("=") for pair in columns.split(",")] if columns else []
    if wrong := [ours for ours, sign, theirs in pairs if not (ours and sign and theirs)]:
        raise ValueError(f"--columns is OURS=YOURS,..., such as answer=text; found {wrong[0]!r}")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
