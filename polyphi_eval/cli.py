"""`polyphi eval`: evaluate a model, check data, synthesise spoken questions, score recorded answers again."""

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from polyphi.cli.options import MACHINE, QuantOption, console


def is_run(model: str) -> bool:
    """Whether `model` is the folder of a run of the recipe."""
    return (Path(model) / "run.json").is_file()


class Group(TyperGroup):
    """A command group in which `eval MODEL ...` means `eval run MODEL ...`. Without --suite, the folder of a run of the
    recipe means `eval heldout MODEL ...`, a command that the recipe adds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            suite = any(argument.partition("=")[0] == "--suite" for argument in args)
            run = is_run(args[0]) and "heldout" in self.commands
            args = ["heldout" if run and not suite else "run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="eval",
    cls=Group,
    help="Evaluate a model: polyphi eval MODEL --suite table4 --data DIR, or score recorded answers again.",
    no_args_is_help=True,
)
OTHER_MODELS = "Judges, the simulator, and keys"
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="table1 to table15, section5, all, mini, a benchmark, or a benchmark's file; repeatable.",
    ),
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Folder that holds the public data, or `hub`.")
]


@app.command("run")
def eval_run(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A run, a checkpoint, http://host:8000/v1#name, or a folder of recorded answers."
        ),
    ],
    suites: SuiteOption = None,
    data: DataOption = None,
    mini: Annotated[
        bool, typer.Option("--mini", help="Use a few synthetic samples instead of the data.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; the same command resumes.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum samples of each row (the first ones).", min=1)
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Skip benchmarks without data.")
    ] = False,
    quant: QuantOption = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            help="Judge model: http://host/v1#name, self, or azure:PROJECT; repeatable.",
            rich_help_panel=OTHER_MODELS,
        ),
    ] = None,
    simulator: Annotated[
        str | None,
        typer.Option(
            help="Model that simulates the user in adversarial dialogues: http://host/v1#name, or self.",
            rich_help_panel=OTHER_MODELS,
        ),
    ] = None,
    key_from: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the API key, if MODEL is an endpoint.",
            rich_help_panel=OTHER_MODELS,
        ),
    ] = None,
    judge_key_from: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the judges' and the simulator's API key.",
            rich_help_panel=OTHER_MODELS,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=MACHINE)
    ] = "auto",
    part: Annotated[
        str,
        typer.Option(
            help="i/k: every k-th sample from the i-th on, for one of k machines.",
            rich_help_panel=MACHINE,
        ),
    ] = "1/1",
) -> None:
    """Evaluate MODEL on the report's benchmarks (--suite); a run without --suite means `polyphi eval heldout`.

    \b
    Examples:
      polyphi eval runs/nano
      polyphi eval runs/nano/model --suite mini
      polyphi eval microsoft/Phi-4-mini-instruct --suite table4 --data hub --out results
      polyphi eval http://localhost:8000/v1#model --suite table1 --data public
    """
    from polyphi_eval import evaluation
    from polyphi_eval.report.tables import markdown
    from polyphi_eval.sources import Data

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
    number, slash, of = part.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ValueError(f"--part is i/k with 1 <= i <= k, such as 2/8; found {part!r}")
    if "mini" in suites and is_run(model):  # the held-out tasks are a part of that suite
        assert ctx.parent is not None
        heldout = cast(TyperGroup, ctx.parent.command).commands["heldout"]
        ctx.invoke(cast(Any, heldout.callback), run=Path(model), quant=quant)
    own = evaluation.evaluated_model(model, quant=quant, device=device, key_from=key_from)
    rows = evaluation.measure(
        own,
        suites,
        out or evaluation.results_folder(model, own, suites),
        data=None if mini else Data(None if data == "hub" else Path(str(data))),
        judges=judges or (),
        judge_key=judge_key_from,
        simulated_by=simulator,
        limit=limit,
        shard=(int(number), int(of)),
        skip_missing=skip_missing,
        console=console,
    )
    console.print(markdown([row.as_dict() for row in rows]), highlight=False, soft_wrap=True)


@app.command("check-data")
def eval_check_data(
    data: Annotated[str, typer.Argument(help="Folder that holds the public data, or `hub`.")],
    suites: SuiteOption = None,
) -> None:
    """List missing and unexpected data of the benchmarks, and the sources of the data.

    \b
    Examples:
      polyphi eval check-data public --suite table4
    """
    from polyphi_eval import evaluation
    from polyphi_eval.benchmark import suite
    from polyphi_eval.sources import Data

    chosen = suite(*suites or ("all",))
    wrong = evaluation.data_problems(chosen, Data(None if data == "hub" else Path(data)))
    for benchmark in chosen:
        for message in wrong.get(benchmark.name, ["as expected"]):
            console.print(f"{benchmark.name}: {message}", highlight=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


@app.command("synthesise")
def eval_synthesise(
    names: Annotated[
        list[str], typer.Argument(help="Benchmarks with spoken questions, or suites of them.")
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Folder of the data; the spoken sets are written to it.")
    ],
    texts: Annotated[
        str | None, typer.Option(help="Folder of the text sets, or `hub`; default: --data.")
    ] = None,
    voices: Annotated[
        list[str] | None,
        typer.Option(
            "--voice",
            help="espeak-ng:f2, flite:slt, http://host/v1#MODEL:VOICE or a command with {text}; repeatable.",
        ),
    ] = None,
    listener: Annotated[
        str | None,
        typer.Option(help="Speech recognition model that checks the audio: http://host/v1#MODEL."),
    ] = None,
    worst: Annotated[
        float,
        typer.Option(help="WER above which, with a listener, the other voices are tried.", min=0),
    ] = 0.3,
    key_from: Annotated[
        str | None, typer.Option(help="Environment variable with the listener's API key.")
    ] = None,
) -> None:
    """Synthesise speech for benchmarks with spoken questions. The same command resumes.

    \b
    Examples:
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


@app.command("score")
def eval_score(
    folder: Annotated[Path, typer.Argument(help="Folder with the per-sample .jsonl files.")],
    suites: Annotated[
        list[str] | None,
        typer.Option("--suite", help="Files of custom benchmarks among them; repeatable."),
    ] = None,
) -> None:
    """Compute every score again from recorded answers, without the model.

    \b
    Examples:
      polyphi eval score runs/nano/eval
    """
    if (folder / "model.json").exists():
        from polyphi_eval.evaluation import rescored

        results: list[Any] = [row.as_dict() for row in rescored(folder, suites or ())]
    else:
        from polyphi_eval.baselines import rescore

        results = rescore(folder)
    print(json.dumps(results, indent=1, ensure_ascii=False))
