"""Fine-tuning a published checkpoint on own data: one stage file, one command (docs/finetune.md).

    polyphi train my_stage.py --model microsoft/Phi-4-multimodal-instruct --data mine.jsonl --out runs/mine

The file holds a `Stage`, like those of the recipe. What its `learn` doesn't name keeps its values and its dtype, and
the manifest proves it; trained parameters are float32. The folder then holds::

    DIR/data/CORPUS/train/      own data as shards
    DIR/{manifest.json,metrics.jsonl,loss.png}
    DIR/trained.safetensors     the trained tensors, in float32
    DIR/model/                  the whole model in a public layout: `polyphi chat DIR/model`
"""

import runpy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from polyphi.api import make_processor
from polyphi.checkpoints.names import PUBLISHED_ADAPTERS
from polyphi.checkpoints.read import (
    files_beside,
    load_checkpoint,
    locate,
    read_layout,
    read_quantization,
    stored_types,
)
from polyphi.checkpoints.write import write_checkpoint
from polyphi.data import own
from polyphi.engine import placement
from polyphi.engine.memory import free_memory
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime import distributed, progress
from polyphi.runtime.precision import Choice, pinned, products
from polyphi.train.loop import train
from polyphi.train.options import MachineOptions, TrainOptions
from polyphi.train.resume import choose_precision
from polyphi.train.stage import Budget, Stage, claim


def finetune(
    stage: Stage | Path,
    data: Sequence[str],
    out: Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    steps: int | None = None,
    batch_tokens: int | None = None,
    rate: float = 1.0,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    track: Sequence[str] = (),
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
) -> Path:
    """Train `stage` (or that of a file) from a published checkpoint; returns the folder of the exported model.

    `data`: sources (`data/own.py`), as CORPUS=SOURCE where the mix has several corpora; `columns` maps names of columns
    (or CORPUS.NAME) to those of the data. `checkpoint`, `steps`, `batch_tokens` and `rate` (a factor on the rates of
    `learn`) replace the stage's own. `track` names trackers (progress.py), which take the place of those of `options`,
    as `origins` do. Where the precision of `options` is "auto" and none is recorded in `out`, float32, which also
    casts frozen weights, is chosen only where they fit into free memory. The same call resumes an interrupted one.

    Raises ValueError for whatever the user can correct: the file, the data, names of tensors and adapters.
    """
    stage = load_stage(stage) if isinstance(stage, Path) else stage
    out = Path("runs") / stage.name if out is None else Path(out)
    distributed.start()
    sources = _sources(stage, data)
    named = _columns(list(sources), columns or {})
    source = _start(stage, checkpoint)
    folder = locate(source)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if made := read_quantization(folder):
        raise ValueError(
            f"{folder} is quantised to {made} and can't be trained; start from the checkpoint that it was made of"
        )
    free, wide = free_memory(torch.device(device)), _float32_bytes(folder)
    model = load_checkpoint(folder, device=device)
    processor = make_processor(model.config, Tokenizer.load(folder))
    origins = dict.fromkeys((n for n, _ in model.named_parameters()), source)
    for name, like in stage.adapters.items():
        model.add_adapter(name, like, options.seed)
        if isinstance(like, str):
            copied = [n for n, _ in model.named_parameters() if f".lora.{name}." in n]
            origins |= dict.fromkeys(copied, f"copy of {like}")
    learned = claim(stage.learn, [n for n, _ in model.named_parameters()])
    _check_routes(stage, model, learned)
    batch = batch_tokens or stage.batch_tokens
    choice = choose_precision(
        options.precision,
        out,
        device,
        lambda: products((p.shape, name in learned) for name, p in model.named_parameters()),
        min(machine.micro_tokens, batch),
        lambda choice: _that_fits(choice, wide, free),
    )
    if distributed.rank() == 0:
        options.report(f"precision {choice}")
    stored = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if choice.precision == "fp32" or name in learned:
            parameter.data = parameter.data.float()

    if distributed.rank() == 0:
        for corpus, found in sources.items():
            own.build(
                out / "data" / corpus,
                found,
                columns=named[corpus],
                skip_bad=skip_bad,
                tell=options.report,
            )
    distributed.wait()
    train(
        stage,
        Budget(steps or stage.steps, batch, stage.context, rate),
        model,
        processor,
        out / "data",
        out,
        options=replace(
            options,
            precision=choice,
            origins=origins,
            trackers=[progress.tracker(name, out / name, stage.name) for name in track],
        ),
        machine=machine,
    )
    if distributed.rank() == 0 and not (out / "model").exists():
        layout = read_layout(folder)
        if set(model.config.adapters) - set(PUBLISHED_ADAPTERS) and layout == "original":
            layout = "native"
        tensors = model.state_dict()
        write_checkpoint(
            model.config,
            lambda name: tensors[name].to(stored[name]),
            out / "model",
            layout,
            files=files_beside(folder, layout),
        )
        options.report(
            f"wrote {out / 'model'} ({layout} layout); talk to it: polyphi chat {out / 'model'}"
        )
    return out / "model"


def _float32_bytes(folder: Path) -> int:
    return placement.size(stored_types(folder), torch.float32)


def _that_fits(choice: Choice, needed: int, free: int) -> Choice:
    """A measured choice, or bf16 where the weights don't fit in float32."""
    if choice.precision == "bf16" or needed <= free or pinned() is not None:
        return choice
    return Choice(
        "bf16",
        f"the weights take {needed / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB are free ({choice.reason})",
    )


def load_stage(file: Path) -> Stage:
    """The `stage` of a file. Raises ValueError where there is none, or where the file fails."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a stage file, found nothing there")
    try:
        found = runpy.run_path(str(file)).get("stage")
    except Exception as error:  # anything may go wrong in it
        raise ValueError(f"{file} could not be run: {type(error).__name__}: {error}") from error
    if not isinstance(found, Stage):
        raise ValueError(
            f"{file}: expected `stage = Stage(...)`, found "
            f"{'no stage' if found is None else f'a {type(found).__name__}'}"
        )
    return found


def _start(stage: Stage, checkpoint: str | Path | None) -> str:
    """The checkpoint: `checkpoint`, or what `start` names."""
    if stage.copy:
        raise ValueError(
            f"{stage.name}: `copy` is for the recipe's stages; use adapters={{NEW: OLD}}"
        )
    if set(stage.start) - {"*"}:
        raise ValueError(
            f"{stage.name}: own stages start from one checkpoint, {{'*': 'hf:owner/name'}}; found {dict(stage.start)}"
        )
    source = checkpoint or stage.start.get("*")
    if source is None:
        raise ValueError(
            f"{stage.name} doesn't say what it starts from; give --model CHECKPOINT, a folder or a hub id"
        )
    return str(source)


def _sources(stage: Stage, data: Sequence[str]) -> dict[str, list[str]]:
    """The sources of each corpus of the mix."""
    names = list(stage.data.weights)
    found: dict[str, list[str]] = defaultdict(list)
    for given in data:
        name, named, source = given.partition("=")
        if named and name in names:
            found[name].append(source)
        elif len(names) == 1:
            found[names[0]].append(given)
        else:
            raise ValueError(
                f"the mix of {stage.name} has {len(names)} corpora; say which one {given!r} is, such as "
                f"--data {names[0]}={given} (the others: {', '.join(names[1:])})"
            )
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"no data for {', '.join(missing)}; give --data {missing[0]}=SOURCE, or leave it out of the mix"
        )
    return found


def _columns(corpora: Sequence[str], columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The names of columns of each corpus: `CORPUS.answer` is for that one, `answer` for all."""
    found: dict[str, dict[str, str]] = {corpus: {} for corpus in corpora}
    for ours, theirs in columns.items():
        corpus, _, name = ours.rpartition(".")
        if corpus and corpus not in found:
            raise ValueError(
                f"--columns {ours}={theirs} names no corpus of the mix; it has {', '.join(found)}"
            )
        for one in [corpus] if corpus else corpora:
            found[one][name] = theirs
    return found


def _check_routes(stage: Stage, model: PhiModel, learned: Mapping[str, float]) -> None:
    """Rows reach every adapter that learns, and go by none that isn't there."""
    known, routed = model.config.adapters, stage.data.adapter
    if unknown := sorted(set(routed.values()) - set(known)):
        raise ValueError(
            f"{stage.name} sends data to the adapter {unknown[0]!r}; this model has: "
            f"{', '.join(known) or 'none'} (Stage.adapters adds siblings)"
        )
    reached = {*routed.values(), *PUBLISHED_ADAPTERS}
    for name in known:
        if name not in reached and any(f".lora.{name}." in n for n in learned):
            corpus = next(iter(stage.data.weights))
            raise ValueError(
                f"{stage.name} is to learn the adapter {name!r}, but no data goes by it; say which do: "
                f"Mix(..., adapter={{{corpus!r}: {name!r}}})"
            )
