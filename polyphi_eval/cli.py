"""`polyphi eval`: evaluate a model, compare it with a reference, check data, synthesize spoken questions, score
recorded answers again."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat

from polyphi.cli.application import application
from polyphi.cli.options import ModalityOption, QuantOption, console
from polyphi_eval.eval_options import MACHINE, OTHER_MODELS, ComparisonOptions, EvalOptions


def is_run(model: str) -> bool:
    """Whether `model` is the folder of a run of the recipe."""
    return (Path(model) / "run.json").is_file()


app = application(
    "eval",
    """Evaluate a model on the report's benchmarks (--suite), or a run on its held-out tasks; or compare a model's next
tokens with those of its unquantized checkpoint (--against), check data, synthesize spoken questions, score recorded
answers again.

For example:

    polyphi eval runs/nano
    polyphi eval runs/nano/model --suite mini
    polyphi eval microsoft/Phi-4-mini-instruct --suite table4 --data hub --out results
    polyphi eval http://localhost:8000/v1#model --suite table1 --data public
    polyphi eval runs/nano/model --quant int4 --against runs/nano/model
""",
)
SuiteOption = Annotated[
    tuple[str, ...],
    Parameter(
        name="--suite",
        help="table1 to table15, section5, all, mini, a benchmark, or a benchmark's file; repeatable.",
    ),
]


@app.default
def evaluate(
    model: Annotated[
        str,
        Parameter(
            help="A run, a checkpoint, http://host:8000/v1#name, or a folder of recorded answers."
        ),
    ],
    /,
    *tasks: Annotated[str, Parameter(help="Held-out tasks of a run without --suite.")],
    suites: SuiteOption = (),
    data: Annotated[
        str | None, Parameter(help="Folder that holds the public data, or `hub`.")
    ] = None,
    mini: Annotated[
        bool, Parameter(help="Use a few synthetic samples instead of the public data.")
    ] = False,
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder for the results; the same command resumes. With --against a JSON file."
        ),
    ] = None,
    quant: QuantOption = None,
    modality: ModalityOption = (),
    options: EvalOptions = EvalOptions(),  # noqa: B008 - frozen
    comparison: ComparisonOptions = ComparisonOptions(),  # noqa: B008 - frozen
    key_from: Annotated[
        str | None,
        Parameter(
            help="Environment variable with the API key, if MODEL is an endpoint.",
            group=OTHER_MODELS,
        ),
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.", group=MACHINE)] = "auto",
) -> None:
    """Evaluate MODEL on benchmarks; a run without `suites` on its held-out tasks, as `polyphi eval heldout`."""
    if comparison.against is not None:
        others: dict[str, object] = {
            "a second argument": tasks,
            "--suite": suites,
            "--data": data,
            "--mini": mini,
            "--key-from": key_from,
            "an option of benchmarks": options != EvalOptions(),
        }
        if unused := [name for name, value in others.items() if value]:
            raise ValueError(
                f"--against compares two models without benchmarks; omit {unused[0]}, or omit --against"
            )
        _compare(model, comparison, quant, modality, device, out)
        return
    if comparison != ComparisonOptions():
        option = "--rows" if comparison.rows else "--layers"
        raise ValueError(f"{option} needs a model to compare with: --against REFERENCE")
    from polyphi_eval import evaluation
    from polyphi_eval.benchmark import suite
    from polyphi_eval.report.tables import markdown
    from polyphi_eval.sources import Data

    if not suites and is_run(model) and "heldout" in app:
        if data or mini or out or key_from or device != "auto" or options != EvalOptions():
            raise ValueError(
                f"{model} is a run, whose held-out tasks take only --quant and --modality; expected --suite beside "
                "the other options, such as --suite mini"
            )
        _heldout()(Path(model), *tasks, quant=quant, modality=modality)
        return
    if tasks:
        raise ValueError(
            f"expected one model, found {model} and {' '.join(tasks)}; benchmarks are named by --suite"
        )
    if not suites:
        raise ValueError(
            f"{model} is no run of `polyphi reproduce`; for other models use --suite table4 --data DIR, or --suite mini"
        )
    if "mini" in suites and data is not None:
        raise ValueError(f"the suite mini has its own data; leave out --data {data}")
    mini = mini or "mini" in suites
    if not mini and data is None:
        raise ValueError(
            "no data: use --data DIR (`polyphi eval check-data` lists the expected files), --data hub, or --mini"
        )
    chosen, source = suite(*suites), None
    if not mini:
        source = Data(None if data == "hub" else Path(str(data)))
        evaluation.check_data(chosen, source, options)
    evaluation.check_others(options)
    if "mini" in suites and is_run(model):  # the held-out tasks are a part of that suite
        _heldout()(Path(model), quant=quant)
    own = evaluation.evaluated_model(
        model, quant=quant, device=device, key_from=key_from, modalities=modality
    )
    results = evaluation.measure(
        own,
        suites,
        out or evaluation.results_folder(model, own, suites),
        data=source,
        options=options,
        console=console,
    )
    console.print(markdown([row.as_dict() for row in results]), highlight=False, soft_wrap=True)


def _compare(
    model: str,
    comparison: ComparisonOptions,
    quant: str | None,
    modality: tuple[str, ...],
    device: str,
    out: Path | None,
) -> None:
    """Print the difference of a model from a reference, and write it to the JSON file `out`."""
    if model.startswith(("http://", "https://")) or list(Path(model).glob("answers*.jsonl")):
        raise ValueError(
            f"--against compares the next tokens of two checkpoints; expected a checkpoint, found {model}"
        )
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise ValueError(
            f"with --against the result is one file; expected --out FILE.json, found --out {out}"
        )
    from polyphi.cli import accuracy
    from polyphi.data.shards import Shards
    from polyphi.runtime.files import write_json

    assert comparison.against is not None
    shards = [Shards(folder) for folder in comparison.rows]
    reference = accuracy.load_reference(comparison.against, device=device, modality=modality)
    subject = accuracy.load(model, quant, device=device, modality=modality)
    measurement = accuracy.measure(reference, subject, shards, parts=comparison.layers)
    accuracy.show(measurement.accuracy)
    console.print(
        f"{subject.name} against {reference.name} on {measurement.rows}: {measurement}",
        highlight=False,
        soft_wrap=True,
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, measurement.as_json())


def _heldout() -> Callable[..., None]:
    """The command that evaluates a run of the recipe on its held-out rows, which the recipe adds."""
    command = app["heldout"].default_command
    assert command is not None
    return command


@app.command(name="check-data")
def eval_check_data(
    data: Annotated[str, Parameter(help="Folder that holds the public data, or `hub`.")],
    /,
    *,
    suites: SuiteOption = (),
) -> None:
    """List missing and unexpected data of the benchmarks, and the sources of the data.

    For example:

        polyphi eval check-data public --suite table4
    """
    from polyphi_eval import evaluation
    from polyphi_eval.benchmark import suite
    from polyphi_eval.sources import Data

    chosen = suite(*(suites or ("all",)))
    wrong = evaluation.data_problems(chosen, Data(None if data == "hub" else Path(data)))
    for benchmark in chosen:
        for message in wrong.get(benchmark.name, ["as expected"]):
            console.print(f"{benchmark.name}: {message}", highlight=False, soft_wrap=True)
    if wrong:
        sys.exit(1)


@app.command(name="synthesise")
def eval_synthesize(
    *names: Annotated[
        str, Parameter(help="Benchmarks with spoken questions, or suites of them.", required=True)
    ],
    data: Annotated[Path, Parameter(help="Folder of the data; the spoken sets are written to it.")],
    texts: Annotated[
        str | None, Parameter(help="Folder of the text sets, or `hub`; default: --data.")
    ] = None,
    voices: Annotated[
        tuple[str, ...],
        Parameter(
            name="--voice",
            help="espeak-ng:f2, flite:slt, http://host/v1#MODEL:VOICE or a command with {text}; repeatable.",
        ),
    ] = (),
    listener: Annotated[
        str | None,
        Parameter(help="Speech recognition model that checks the audio: http://host/v1#MODEL."),
    ] = None,
    worst: Annotated[
        NonNegativeFloat,
        Parameter(help="With --listener: WER above which other voices are tried."),
    ] = 0.3,
    key_from: Annotated[
        str | None, Parameter(help="Environment variable with the listener's API key.")
    ] = None,
) -> None:
    """Synthesize speech for benchmarks with spoken questions. The same command resumes.

    For example:

        polyphi eval synthesise mmmlu_spoken --data public --voice espeak-ng:f2 --voice flite:slt
    """
    from polyphi_eval import read_aloud
    from polyphi_eval.sources import Data

    read_aloud.read_aloud(
        names,
        data,
        Data(None if texts == "hub" else Path(texts or data)),
        voices=[read_aloud.voice_of(name) for name in voices or ("espeak-ng",)],
        transcribe=read_aloud.listener(listener, key_from) if listener else None,
        worst=worst,
        console=console,
    )


@app.command(name="score")
def eval_score(
    folder: Annotated[Path, Parameter(help="Folder with the per-sample .jsonl files.")],
    /,
    *,
    suites: Annotated[
        tuple[str, ...],
        Parameter(
            name="--suite",
            help="Files of custom benchmarks whose answers are in the folder; repeatable.",
        ),
    ] = (),
) -> None:
    """Compute every score again from recorded answers, without the model.

    For example:

        polyphi eval score runs/nano/eval
    """
    if (folder / "model.json").exists():
        from polyphi_eval.evaluation import rescored

        results: list[Any] = [row.as_dict() for row in rescored(folder, suites)]
    else:
        from polyphi_eval.baselines import rescore

        results = rescore(folder)
    print(json.dumps(results, indent=1, ensure_ascii=False))
