"""The stages of `polyphi finetune`: what is trained on rows with images, speech or text, or on preference pairs.

    polyphi finetune vision --model microsoft/Phi-4-multimodal-instruct --data receipts.jsonl --out runs/receipts

Each is a `Stage` as in a user's file; `polyphi train` takes a file with a changed copy of one
(docs/finetune_reference.md). The command sets steps and tokens of a step by the rows and the machine
(finetuning/plan.py), so that those here only bound them. All rates are peaks; the encoders and the language model's
own weights are frozen.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from polyphi.model.config import AdapterConfig
from polyphi.train.loss import NextToken
from polyphi.train.preference import DPO
from polyphi.train.stage import Mix, Schedule, Stage
from polyphi.types.modality import run_file

CORPUS = "rows"
"""The corpus that `--data` fills."""
TEXT_ADAPTER = "text"
"""Name of the adapter that is added for rows of text alone, which use none otherwise."""
TEXT_ADAPTER_CONFIG = AdapterConfig(rank=64, alpha=128.0)
"""[ours] A rank that suits instructions; its rate is the default for the rank (optimizer.py)."""

VISION = Stage(
    name="vision",
    start={},
    # half the rates of the report's last vision stage [ours]
    trainable={"decoder.*.lora.vision.*": 5e-5, "vision.projector.*": 1e-5},
    data=Mix({CORPUS: 1}),
    objective=NextToken(max_crops=16),  # a crop is 448 pixels square and about 256 tokens
    schedule=Schedule(warmup=0.05, decay="linear"),
    context=8192,
    batch_tokens=32_768,
    steps=500,
)

SPEECH = Stage(
    name="speech",
    start={},
    # as in the report's speech post-training (2.2.2)
    trainable={"audio.projector.speech.*": 1e-4, "decoder.*.lora.speech.*": 1e-4},
    data=Mix({CORPUS: 1}),
    objective=NextToken(),
    schedule=Schedule(warmup=0.05, decay="linear"),
    context=4096,  # tokens; a second of speech has 12.5, longer rows are left out and counted
    batch_tokens=16_384,
    steps=500,
)

BOTH = replace(
    VISION,
    name="both",
    # a row with an image uses the vision adapter, one with audio alone the speech adapter
    trainable={**VISION.trainable, **SPEECH.trainable},
    steps=1000,
)

TEXT = replace(
    SPEECH,
    name="text",
    adapters={TEXT_ADAPTER: TEXT_ADAPTER_CONFIG},
    trainable={f"decoder.*.lora.{TEXT_ADAPTER}.*": "auto"},  # type: ignore[dict-item]
    data=Mix({CORPUS: 1}, adapter={CORPUS: TEXT_ADAPTER}),
)

PREFERENCES = Stage(
    name="preferences",
    start={},
    # a tenth of the rate of VISION [ours]: DPO compares whole answers and needs smaller steps
    trainable={"decoder.*.lora.vision.*": 5e-6},
    data=Mix({CORPUS: 1}),
    objective=DPO(beta=0.1, nll=0.2, max_crops=16),
    schedule=Schedule(warmup=0.1, decay="linear"),
    context=8192,  # of each of the two rows of a pair
    batch_tokens=65_536,
    steps=200,
)

STAGES = {stage.name: stage for stage in (VISION, SPEECH, BOTH, TEXT, PREFERENCES)}
MODALITIES = {"vision": ("image",), "speech": ("audio",), "both": ("audio", "image"), "text": ()}
"""Modalities that the rows of a stage have; preference pairs may have any."""
ADAPTERS = {"image": "vision", "audio": "speech"}
MULTIMODAL = "microsoft/Phi-4-multimodal-instruct"


def named_stage(name: str) -> Stage:
    """The built-in stage of a name. Raises ValueError for an unknown one."""
    if name not in STAGES:
        raise ValueError(f"unknown fine-tune {name!r}; expected one of {', '.join(STAGES)}")
    return STAGES[name]


def load_stage(file: Path) -> Stage:
    """The `stage` of a file. Raises ValueError where there is none, or where running the file fails."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a stage file, found no file")
    stage = getattr(run_file(file), "stage", None)
    if not isinstance(stage, Stage):
        raise ValueError(
            f"{file}: expected `stage = Stage(...)`, found "
            f"{'no stage' if stage is None else f'a {type(stage).__name__}'}"
        )
    return stage


def check_model(stage: Stage, adapters: Collection[str], model: str) -> None:
    """Raise ValueError where a model lacks an adapter that a stage trains."""
    needed = [ADAPTERS[modality] for modality in MODALITIES.get(stage.name, ())]
    if missing := [name for name in needed if name not in adapters]:
        raise ValueError(
            f"`finetune {stage.name}` trains the adapter {missing[0]}, which {model} doesn't have; start from "
            f"{MULTIMODAL}, or train on text alone: polyphi finetune text"
        )


def for_rows(stage: Stage, parts: Collection[str], adapters: Collection[str]) -> Stage:
    """The stage for rows with parts of these modalities, on a model with these adapters. Pairs train the adapter that
    they use: vision with images, else speech with audio, else the one for text, which is added where the model has
    none. Raises ValueError where the rows aren't of the stage's modalities."""
    if stage.name == "preferences":
        if "audio" in parts and "image" not in parts:
            stage = replace(stage, trainable={"decoder.*.lora.speech.*": 1e-5})
        elif not parts:
            stage = replace(
                stage,
                adapters=TEXT.adapters,
                trainable={f"decoder.*.lora.{TEXT_ADAPTER}.*": 2e-5},
                data=TEXT.data,
            )
    else:
        _check_rows(stage, parts)
    if TEXT_ADAPTER in stage.adapters and TEXT_ADAPTER in adapters:
        stage = replace(stage, adapters={})  # a fine-tuned model: its adapter is trained further
    return stage


def _check_rows(stage: Stage, parts: Collection[str]) -> None:
    """Raise ValueError where rows lack a modality of the stage, or are of one for which it isn't."""
    needed, present = MODALITIES[stage.name], tuple(sorted(parts))
    if set(needed) <= set(present) and (needed or not present):
        return
    better = next((name for name, of in MODALITIES.items() if of == present), None)
    raise ValueError(
        f"`finetune {stage.name}` expects rows with {' and '.join(needed) or 'text alone'}, found rows with "
        f"{' and '.join(present) or 'text alone'}"
        + (f": polyphi finetune {better}" if better else "")
    )
