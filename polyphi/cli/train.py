"""`polyphi train`: train stages of the recipe, or a custom stage from a public checkpoint."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from polyphi.cli.options import (
    ModalityOption,
    PublicOption,
    PushOption,
    RecipeOption,
    SizeOption,
    console,
)
from polyphi.train.options import FINETUNE_GROUP, FinetuneOptions, TrainOptions

if TYPE_CHECKING:
    from polyphi.finetuning.prepare import FinetunePlan


def train(
    *stages: Annotated[
        str,
        Parameter(
            name="STAGE", help="Stages, such as speech_2_post, or a stage file.", required=True
        ),
    ],
    size: SizeOption = "nano",
    recipe: RecipeOption = None,
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder of the run; a recipe file needs one; default: runs/nano, or runs/NAME for a custom stage."
        ),
    ] = None,
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    model: Annotated[
        str | None,
        Parameter(help="Checkpoint to start from: folder or hub id.", group=FINETUNE_GROUP),
    ] = None,
    data: Annotated[
        tuple[str, ...],
        Parameter(
            help=".jsonl, .parquet, a folder or hf:owner/name; CORPUS=... for several.",
            group=FINETUNE_GROUP,
        ),
    ] = (),
    finetuning: FinetuneOptions = FinetuneOptions(),  # noqa: B008 - frozen
    modality: ModalityOption = (),
    push_to_hub: PushOption = None,
    public: PublicOption = False,
) -> None:
    """Train stages of the recipe, after the corpora and parent stages that they need; or a custom stage from a public
    checkpoint: polyphi train my_stage.py --model CHECKPOINT --data mine.jsonl. `polyphi finetune` needs no stage file
    (docs/finetune.md).

    For example:

        polyphi train vision_3_generative --out runs/nano
        polyphi train speech_2_post --size micro --out runs/micro
        polyphi train vision_2_joint --recipe lab.toml --out runs/lab
        polyphi train examples/finetune_sibling.py --model runs/nano/model --data rows.jsonl
        polyphi train motion.py stage_motion.py --model runs/nano/model --data motion.jsonl
    """
    from polyphi.train.interrupt import record_interrupts

    record_interrupts()
    if not any(stage.endswith(".py") for stage in stages):
        values = {"model": model, "data": data, "push_to_hub": push_to_hub, **vars(finetuning)}
        defaults = {"model": None, "data": (), "push_to_hub": None, **vars(FinetuneOptions())}
        defaults["batch_tokens"] = finetuning.batch_tokens  # it is for stages of the recipe, too
        if own := [name for name, value in values.items() if value != defaults[name]]:
            names = ", ".join("--" + name.replace("_", "-") for name in own)
            source = f" --corpus NAME={data[0]}" if data else ""
            raise ValueError(
                f"{names} needs a stage of your own, in a .py file; found the recipe's {stages[0]}, whose data and "
                f"models a recipe file names: `polyphi recipe new lab.toml --goal everything{source}` writes one, then "
                f"`polyphi train {stages[0]} --recipe lab.toml --out runs/lab`"
            )
        train_named(
            stages,
            out,
            size=size,
            recipe=recipe,
            options=options,
            batch_tokens=finetuning.batch_tokens,
            modalities=modality,
        )
        return

    from polyphi.finetuning.plan import report_only
    from polyphi.types.modality import defines, load_modality

    files = [Path(stage) for stage in stages]
    modalities = [load_modality(file) for file in modality]
    modalities += [load_modality(file) for file in files if defines(file, "modality")]
    of_stages = [file for file in files if defines(file, "stage") or not defines(file, "modality")]
    if len(of_stages) != 1:
        names = ", ".join(map(str, of_stages)) or f"only modalities: {', '.join(stages)}"
        raise ValueError(f"expected one stage file at a time, found {names}")
    finetune_and_push(
        of_stages[0],
        data,
        out,
        revise=report_only,
        push_to_hub=push_to_hub,
        public=public,
        checkpoint=model,
        finetuning=finetuning,
        options=options,
        modalities=modalities,
    )


def finetune_and_push(
    stage: Path | str,
    data: Sequence[str],
    out: Path | None,
    *,
    revise: Callable[["FinetunePlan"], "FinetunePlan"],
    push_to_hub: str | None,
    public: bool,
    **settings: Any,
) -> None:
    """Fine-tune on own rows and upload the model, if a repository is named. `revise` returns the plan that is run in
    place of the requested one. `settings` are further arguments of `polyphi.finetuning.job.check`."""
    from polyphi.checkpoints.headers import read_layout
    from polyphi.engine.greedy import greedy_answers
    from polyphi.finetuning.job import check
    from polyphi.finetuning.prepare import prepare, run_folder
    from polyphi.finetuning.run import run
    from polyphi.hub import model_card, push
    from polyphi.runtime import distributed

    target = push.target(push_to_hub, public)
    distributed.start()
    if target and distributed.rank() == 0:
        push.prepare(target)
    report = partial(console.print, highlight=False, soft_wrap=True)
    job = check(stage, data, out, report=report, **settings)
    with run_folder(job):
        folder = run(revise(prepare(job)), greedy_answers)
    if target and distributed.rank() == 0:
        model_card.write(folder, read_layout(folder), push_to_hub)
        console.print(f"pushed to {push.push(folder, target)}")


def train_named(
    names: Sequence[str],
    out: Path | None,
    *,
    size: str,
    recipe: str | None,
    options: TrainOptions,
    batch_tokens: int | None = None,
    modalities: Sequence[str] = (),
) -> None:
    """Train the stages that another package names, by its entry point of the group `polyphi.stages`: a function that
    trains stages of a size or a recipe file after what they need. `batch_tokens` replaces these stages' tokens of a
    step. Raises ValueError for an unknown stage."""
    points = metadata.entry_points(group="polyphi.stages")
    if not points:
        raise ValueError(
            f"unknown stage {names[0]!r}: expected a stage's .py file, since no installed package names stages"
        )
    next(iter(points)).load()(
        names,
        out,
        recipe=recipe or size,
        options=options,
        batch_tokens=batch_tokens,
        modalities=modalities,
    )
