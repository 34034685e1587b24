"""`polyphi finetune`: train a published checkpoint on own rows by a built-in stage."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.options import PublicOption, PushOption
from polyphi.cli.train import finetune_and_push
from polyphi.train.options import FINETUNE_GROUP, FinetuneOptions, TrainOptions

Kind = Literal["vision", "speech", "both", "text", "preferences"]


def finetune(
    kind: Annotated[
        Kind,
        Parameter(
            help="vision: rows with images; speech: with audio; both; text: text alone, by an adapter called text; "
            "preferences: pairs of answers (DPO)."
        ),
    ],
    /,
    *,
    model: Annotated[
        str, Parameter(help="Checkpoint to start from: folder or hub id.", group=FINETUNE_GROUP)
    ],
    data: Annotated[
        tuple[str, ...],
        Parameter(
            help=".json, .jsonl, .parquet, a folder or hf:owner/name; repeatable.",
            group=FINETUNE_GROUP,
            required=True,
        ),
    ],
    out: Annotated[Path | None, Parameter(help="Folder of the run; default: runs/KIND.")] = None,
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    finetuning: FinetuneOptions = FinetuneOptions(),  # noqa: B008 - frozen
    push_to_hub: PushOption = None,
    public: PublicOption = False,
) -> None:
    """Fine-tune a published checkpoint on your rows, without a stage file (docs/finetune.md).

    Memory and time are printed before the first step. By default each row is used three times, or as often as eight
    hours allow on this machine, and packs fit its free memory. The same command resumes; with more --steps or --epochs
    it trains on.

    For example:

        polyphi finetune vision --model microsoft/Phi-4-multimodal-instruct --data rows.json --out runs/receipts
        polyphi finetune speech --model runs/nano/model --data calls.jsonl --epochs 2
        polyphi finetune text --model microsoft/Phi-4-mini-instruct --data chats.jsonl --base int4
        polyphi finetune preferences --model runs/nano/model --data pairs.jsonl --eval-data test_pairs.jsonl
    """
    from polyphi.train.interrupt import record_interrupts

    record_interrupts()
    from polyphi.finetuning.plan import choose

    finetune_and_push(
        kind,
        data,
        out,
        revise=choose,
        push_to_hub=push_to_hub,
        public=public,
        checkpoint=model,
        finetuning=finetuning,
        options=options,
    )
