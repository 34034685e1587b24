"""`polyphi train`: train stages of the recipe, or a custom stage from a public checkpoint."""

import difflib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

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
        tuple[str, ...],
        Parameter(name="STAGE", help="Stages, such as speech_2_post, or a stage file."),
    ],
    /,
    *,
    size: SizeOption = "nano",
    out: Annotated[
        Path | None,
        Parameter(help="Folder of the run; default: runs/nano, or runs/NAME for a custom stage."),
    ] = None,
    seed: int = 0,
    precision: PrecisionOption = "auto",
    micro_tokens: Annotated[
        int, Parameter(help="Maximum tokens of a pack (micro-batch).", group=MACHINE)
    ] = 8192,
    micro_crops: Annotated[
        int | None,
        Parameter(
            help="Maximum crops of a pack; default: no separate limit.",
            group=MACHINE,
        ),
    ] = None,
    micro_frames: Annotated[
        int | None,
        Parameter(
            help="Maximum audio frames (10 ms) of a pack; default: no separate limit.",
            group=MACHINE,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        Parameter(
            help="Processes that read and decode data; default: 0 on a CPU, several with a GPU.",
            group=MACHINE,
        ),
    ] = None,
    fsdp: Annotated[
        int,
        Parameter(
            help="Shards of the decoder's layers, over torchrun's processes.",
            group=MACHINE,
        ),
    ] = 1,
    context_parallel: Annotated[
        int,
        Parameter(
            help="Processes to split each pack of long text over (context parallelism).",
            group=MACHINE,
        ),
    ] = 1,
    base: Annotated[
        Literal["int8", "int4"] | None,
        Parameter(
            help="Quantize the frozen weights (QLoRA): less memory.",
            group=MACHINE,
        ),
    ] = None,
    activations: Annotated[
        Literal["keep", "recompute", "offload"],
        Parameter(help="keep, recompute (less memory, more time) or offload.", group=MACHINE),
    ] = "keep",
    features: Annotated[
        Path | None,
        Parameter(
            help="Cache outputs of frozen encoders in this folder.",
            group=MACHINE,
        ),
    ] = None,
    background: Annotated[
        bool,
        Parameter(help="Write checkpoints in the background.", group=MACHINE),
    ] = False,
    deterministic: Annotated[
        bool,
        Parameter(
            help="Use only deterministic kernels.",
            group=MACHINE,
        ),
    ] = False,
    spike: Annotated[
        float | None,
        Parameter(
            help="Reject steps with a gradient norm this many times the median, such as 10.",
            group=MACHINE,
        ),
    ] = None,
    on_spike: Annotated[
        Literal["skip", "roll-back"],
        Parameter(
            help="skip the rejected step, or roll-back to the last checkpoint.",
            group=MACHINE,
        ),
    ] = "skip",
    watch_every: Annotated[
        int,
        Parameter(
            help="Steps between evaluations of the stage's held-out tasks; 0: none.",
            group=MACHINE,
        ),
    ] = 0,
    track: Annotated[
        tuple[str, ...],
        Parameter(help="tensorboard, trackio or wandb; repeatable.", group=MACHINE),
    ] = (),
    model: Annotated[
        str | None,
        Parameter(help="Checkpoint to start from: folder or hub id.", group=OWN),
    ] = None,
    data: Annotated[
        tuple[str, ...],
        Parameter(
            help=".jsonl, .parquet, a folder or hf:owner/name; CORPUS=... for several.",
            group=OWN,
        ),
    ] = (),
    columns: Annotated[
        str | None,
        Parameter(
            help="Column names of the data, such as answer=text,audio=clip; CORPUS.answer=... for several.",
            group=OWN,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        Parameter(help="Skip invalid rows.", group=OWN),
    ] = False,
    eval_data: Annotated[
        tuple[str, ...],
        Parameter(
            help="Rows to evaluate the loss on during training, in the form of --data.",
            group=OWN,
        ),
    ] = (),
    eval_every: Annotated[
        PositiveInt | None,
        Parameter(
            help="Steps between these evaluations; default: a tenth of all.",
            group=OWN,
        ),
    ] = None,
    patience: Annotated[
        PositiveInt | None,
        Parameter(
            help="Stop after this many evaluations without a lower loss; the best step is exported.",
            group=OWN,
        ),
    ] = None,
    push_to_hub: PushOption = None,
    public: PublicOption = False,
    steps: Annotated[
        PositiveInt | None, Parameter(help="Steps; default: the stage's.", group=OWN)
    ] = None,
    batch_tokens: Annotated[
        PositiveInt | None,
        Parameter(help="Tokens of a step; default: the stage's.", group=OWN),
    ] = None,
    lr_factor: Annotated[
        float, Parameter(help="Factor for the stage's learning rates.", group=OWN)
    ] = 1.0,
) -> None:
    """Train stages of the recipe, after the corpora and parent stages that they need; or a custom stage from a public
    checkpoint: polyphi train my_stage.py --model CHECKPOINT --data mine.jsonl (docs/finetune.md).

    For example:

        polyphi train vision_3_generative --out runs/nano
        polyphi train speech_2_post --size micro --out runs/micro
        polyphi train examples/finetune_vision.py --model runs/nano/model --data rows.jsonl
    """
    from polyphi.train.guard import StepGuard
    from polyphi.train.interrupt import record_interrupts
    from polyphi.train.options import MachineOptions, TrainOptions

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
            data,
            out,
            checkpoint=model,
            steps=steps,
            batch_tokens=batch_tokens,
            lr_factor=lr_factor,
            columns=parse_pairs(columns),
            skip_bad=skip_bad,
            monitor=Monitor(track or (), eval_data, eval_every, patience),
            options=TrainOptions(
                seed=seed,
                precision=precision,
                base=base,
                report=lambda text: console.print(text, highlight=False, soft_wrap=True),
            ),
            machine=machine,
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
        track=track,
        machine=machine,
    )


def train_named(names: Sequence[str], out: Path | None, **options: Any) -> None:
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
