"""The command line: one short function per verb. A wrong argument is one clear line and exit code 2; a failed run,
1."""

import errno
import json
import logging
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fastapi import FastAPI

    from polyphi.serve.loading import Progress

app = typer.Typer(
    name="polyphi",
    help="Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
# Worker processes (data/workers.py) read this file before grain, which would warn that it has no profiler.
logging.getLogger("absl").setLevel(logging.ERROR)
MACHINE, OWN = "Machines: never what comes out", "A stage of your own (a .py file)"
Precision = Literal["auto", "bf16", "fp32"]
SizeOption = Annotated[str, typer.Option("--size", help="micro, nano, lab or full.")]
RunOption = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Arithmetic of training; weights stay fp32. auto: as the run in the folder, else what is faster here.",
    ),
]
NANO = Path("runs/nano")
QuantOption = Annotated[
    Literal["bf16", "int8", "int4", "int8-all", "int4-all"] | None,
    typer.Option(
        help="Quantise the frozen weights: int8 or int4, with -all adapters and encoders too, in 8 bits; bf16 only "
        "lays them out for this CPU."
    ),
]
KvOption = Annotated[
    Literal["int8"] | None,
    typer.Option(help="Keep keys and values in 8 bits, in half of the memory (on a CPU)."),
]
ModelArgument = Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")]


@app.command()
def reproduce(
    size: Annotated[str, typer.Argument(help="micro, nano, lab or full.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same folder goes on where it stopped.")
    ],
    seed: int = 0,
    precision: PrecisionOption = "auto",
    claims: Annotated[
        bool, typer.Option("--claims", help="Then re-test the report's claims on it.")
    ] = False,
) -> None:
    """The whole recipe: data, tokenizer, sixteen stages, evaluation and a report page."""
    from polyphi.reproduce.graph import Run

    run = Run(size, out, seed=seed, precision=precision, console=console)
    page = run.reproduce()
    if claims:
        from polyphi.reproduce.claims import laboratory

        laboratory.conduct_all(run)
    summary = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["summary"]
    console.print(
        f"\ncore    {summary['core_beats']} of {summary['core']} tasks beat their baselines\n"
        f"report  {page}\ntalk    polyphi chat {out}\npage    polyphi serve {out}   then open its address"
    )


@app.command()
def train(
    names: Annotated[
        list[str],
        typer.Argument(metavar="STAGE...", help="Stages, such as speech_2_post, or a file of one."),
    ],
    size: SizeOption = "nano",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; runs/nano (or runs/NAME of an own stage) if not given."
        ),
    ] = None,
    seed: int = 0,
    precision: PrecisionOption = "auto",
    micro_tokens: Annotated[
        int, typer.Option(help="Most tokens of a pack: memory.", rich_help_panel=MACHINE)
    ] = 8192,
    micro_crops: Annotated[
        int | None,
        typer.Option(
            help="Most crops of a pack; as many as its tokens bring if not given.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    micro_frames: Annotated[
        int | None,
        typer.Option(
            help="Most audio frames of 10 ms of a pack; likewise.", rich_help_panel=MACHINE
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read and decode; if not given 0 on a CPU, some beside a GPU.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    shard: Annotated[
        int,
        typer.Option(
            help="Parts to cut the decoder's layers into, over torchrun's processes.",
            rich_help_panel=MACHINE,
        ),
    ] = 1,
    context: Annotated[
        int,
        typer.Option(
            help="Processes to cut each pack of a long text over.", rich_help_panel=MACHINE
        ),
    ] = 1,
    activations: Annotated[
        Literal["keep", "recompute", "offload"],
        typer.Option(
            help="keep, recompute (less memory, more time) or offload.", rich_help_panel=MACHINE
        ),
    ] = "keep",
    features: Annotated[
        Path | None,
        typer.Option(
            help="Keep what encoders that rest make of media in this folder.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    background: Annotated[
        bool,
        typer.Option(
            "--background", help="Write checkpoints beside the training.", rich_help_panel=MACHINE
        ),
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Only kernels that give the same bits always.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    spike: Annotated[
        float | None,
        typer.Option(
            help="A gradient norm this many times the usual one goes wrong, such as 10.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    on_spike: Annotated[
        Literal["skip", "roll-back"],
        typer.Option(
            help="skip the step, or roll-back to the last checkpoint.", rich_help_panel=MACHINE
        ),
    ] = "skip",
    watch_every: Annotated[
        int,
        typer.Option(
            help="Steps between looks at the stage's held-out tasks; 0: none.",
            rich_help_panel=MACHINE,
        ),
    ] = 0,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard, trackio or wandb; may be repeated.", rich_help_panel=MACHINE
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="the checkpoint to start from, folder or hub id.", rich_help_panel=OWN),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=".jsonl, .parquet, a folder or hf:owner/name; CORPUS=... of several.",
            rich_help_panel=OWN,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="the data's names, answer=text,audio=clip; CORPUS.answer=... of several.",
            rich_help_panel=OWN,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="leave out rows that can't be used.", rich_help_panel=OWN),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="in place of its own.", rich_help_panel=OWN)
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="tokens of a step, in place of its own.", rich_help_panel=OWN),
    ] = None,
    rate: Annotated[float, typer.Option(help="factor on its rates.", rich_help_panel=OWN)] = 1.0,
) -> None:
    """Stages of the recipe, after the corpora and parent stages that they need; or a stage of your own from a public
    checkpoint: polyphi train my_stage.py --model CHECKPOINT --data mine.jsonl (docs/finetune.md)."""
    from polyphi.train.guard import Guard
    from polyphi.train.interrupt import remember

    remember()
    machine = dict(
        micro_tokens=micro_tokens,
        micro_crops=micro_crops,
        micro_frames=micro_frames,
        workers=workers,
        shard=shard,
        context=context,
        keep=activations,
        features=features,
        background=background,
        deterministic=deterministic,
        protect=Guard(spike, on_spike),
    )
    if any(name.endswith(".py") for name in names):
        from polyphi.finetune import finetune

        if len(names) > 1:
            raise ValueError(f"one stage file at a time, found {', '.join(names)}")
        finetune(
            Path(names[0]),
            data or (),
            out,
            checkpoint=model,
            steps=steps,
            batch_tokens=batch_tokens,
            rate=rate,
            columns=_pairs(columns),
            skip_bad=skip_bad,
            seed=seed,
            precision=precision,
            track=track or (),
            tell=lambda told: console.print(told, highlight=False, soft_wrap=True),
            **machine,
        )
        return
    from polyphi import stages
    from polyphi.reproduce.graph import Run

    if model or data or columns or steps or batch_tokens:
        raise ValueError(
            "--model, --data, --columns, --steps and --batch-tokens are for a stage of your own, in a .py file; "
            f"found the recipe's {names[0]}"
        )
    for name in names:
        stages.load(name)  # a misspelt name is told before the first hour of training
    run = Run(
        size,
        out or Path("runs/nano"),
        seed=seed,
        precision=precision,
        console=console,
        watch_steps=watch_every,
        track=track or (),
        **machine,
    )
    for name in names:
        run.train(name)


@app.command()
def scaling(
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seeds: Annotated[int, typer.Option(help="Runs of every length and rate.", min=1)] = 2,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Measure the law of text 1's peak rate: best rates over runs of several lengths, B, a picture. Results stand in
    the run's `scaling`."""
    from polyphi.reproduce.graph import Run

    Run(size, out, seed=seed, precision=precision, console=console).scaling(seeds)


@app.command()
def ablate(
    stage: Annotated[str, typer.Argument(help="Stage, such as text_3_post.")],
    mix: Annotated[
        list[str] | None,
        typer.Option(help="Other weights, tools=0 or code=2,math=1; may be repeated."),
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Also the mix without each of its corpora.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Runs of every mix.", min=1)] = 3,
    steps: Annotated[int | None, typer.Option(help="In place of the stage's own.", min=1)] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A held-out task to score as well; may be repeated.")
    ] = None,
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Train a stage under other mixes and compare the held-out loss of every corpus. Results stand in the run's
    `ablation`."""
    from polyphi.reproduce import ablation
    from polyphi.reproduce.graph import Run
    from polyphi.stages import sizes

    arms = ablation.mixes(sizes.load(size).stage(stage), mix or (), leave_one_out)
    run = Run(size, out, seed=seed, precision=precision, console=console)
    found = ablation.ablate(run, stage, arms, seeds=seeds, steps=steps, tasks=task or ())
    console.print(ablation.markdown(found), highlight=False, soft_wrap=True)


@app.command()
def claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLAIM...]", help="Claims, such as C4; all if none is named."),
    ] = None,
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seeds: Annotated[int, typer.Option(help="How often an arm is trained.", min=1)] = 2,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Re-test the report's claims on a finished run; two of these at once share the work."""
    from polyphi.reproduce.claims import laboratory
    from polyphi.reproduce.graph import Run

    run = Run(size, out, seed=seed, precision=precision, console=console)
    laboratory.conduct(run, names or (), seeds)


@app.command()
def curate(
    corpus: Annotated[
        str, typer.Argument(help="Name of a corpus, a Python file with your own, or `show`.")
    ],
    shown: Annotated[
        str, typer.Argument(metavar="[CORPUS or SAMPLE]", help="What `show` explains.")
    ] = "",
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: int = 0,
    executor: Annotated[
        Literal["local", "ray", "slurm"], typer.Option(help="Where tasks run.")
    ] = "local",
    workers: Annotated[int, typer.Option(help="Tasks at a time.", min=1)] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for sbatch: partition, time ...")
    ] = None,
) -> None:
    """Build one corpus of a run, or show what is there: all corpora, one, or where a sample comes from."""
    from polyphi.curate.pipeline import Machines
    from polyphi.reproduce.graph import Run

    run = Run(size, out, seed=seed, console=console)
    if corpus == "show":
        run.show(shown)
        return
    if shown:
        raise ValueError(f"one corpus at a time, found {corpus} and {shown}")
    options = {
        key: int(value) if value.isdigit() else value
        for key, _, value in (given.partition("=") for given in slurm or ())
    }
    run.build(corpus, Machines(executor, workers, options))


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
    video: Annotated[
        list[Path] | None, typer.Option(help="A video, seen as 16 of its frames; likewise.")
    ] = None,
    detail: Annotated[
        Literal["auto", "low", "high"], typer.Option(help="low shows pictures in few tokens.")
    ] = "auto",
    max_tokens: int = 256,
    temperature: float = 0.0,
    adapter: Annotated[
        str, typer.Option(help="auto, none, vision, speech, or a sibling that the model has.")
    ] = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Talk to a model, or ask it one question: PROMPT, or what is piped in. The adapter follows from what the message
    holds."""
    import polyphi
    from polyphi import terminal
    from polyphi.chat import Audio, Image, Message, Part, SamplingParams, Video

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    chosen = None if adapter == "none" else adapter
    asked: list[Part | str] = [
        *(Image(p, detail) for p in image or ()),
        *(Audio(p) for p in audio or ()),
        *(Video(p, detail=detail) for p in video or ()),
    ]
    if prompt is None and not asked and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise ValueError("nothing was piped in; expected a question")
    phi = polyphi.load(model, quant=quant, kv=kv)
    _tell_room(phi)
    if prompt is None and not asked:
        terminal.Terminal(phi, sampling, chosen, console=console).run()
        return
    messages = [Message.user(*asked, *([prompt] if prompt else []))]
    try:
        terminal.once(phi.stream(messages, sampling=sampling, adapter=chosen), console)
    except KeyboardInterrupt:
        console.print()
        raise typer.Exit(130) from None


def _tell_room(phi: Any) -> None:
    """Where a model runs and what fits there, to whoever looks on; logs of scripts hold mistakes only."""
    if sys.stderr.isatty():
        print(f"polyphi: {phi.room}", file=sys.stderr)


@app.command()
def transcribe(
    model: ModelArgument,
    files: Annotated[
        list[str], typer.Argument(help='Audio files, folders, patterns such as "talks/*.mp3".')
    ],
    to: Annotated[
        str | None, typer.Option(help="Translate into this language, such as German.")
    ] = None,
    cot: Annotated[
        bool, typer.Option("--cot", help="Transcribe first, then translate (chain of thought).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the transcripts; the same command goes on.")
    ] = None,
    form: Annotated[
        Literal["text", "json", "verbose_json", "srt", "vtt"],
        typer.Option("--format", help="text, json, verbose_json, srt or vtt."),
    ] = "text",
    words: Annotated[
        bool, typer.Option("--words", help="Times of words too, estimated from their letters.")
    ] = False,
    aligned: Annotated[
        bool,
        typer.Option("--aligned", help="Times of words by the model's attention; poor on nano."),
    ] = False,
    window: Annotated[
        float | None,
        typer.Option(help="Seconds heard at once, such as 30; as much as fits if not given."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also files whose transcript is there already.")
    ] = False,
    adapter: Annotated[str, typer.Option(help="auto, none, or an adapter of the model.")] = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Write down, or translate, what is said in recordings of any length."""
    import polyphi
    from polyphi import transcription

    if cot and to is None:
        raise ValueError("--cot is for translation: give --to LANGUAGE as well")
    recordings = transcription.targets(transcription.find(files), out, form)
    if out is None and form != "text" and len(recordings) > 1:
        raise ValueError(f"{len(recordings)} files as {form} need a folder: give --out DIR as well")
    phi = polyphi.load(model, quant=quant, kv=kv)
    _tell_room(phi)
    failed = transcription.transcribe_files(
        phi,
        recordings,
        form=form,
        to=to,
        cot=cot,
        adapter=None if adapter == "none" else adapter,
        words="aligned" if aligned else "estimated" if words else None,
        window=window,
        force=force,
        write=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )
    if failed:
        raise typer.Exit(1)


@app.command()
def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What the model is called; its folder's name if not given.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that requests need; may be repeated.", envvar="POLYPHI_API_KEY"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let others in without a key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name this server is reached by; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web page that may ask, https://example.org.")
    ] = None,
    allow_remote: Annotated[
        list[str] | None,
        typer.Option(help='A host that media are fetched from, "*.example.org"; none otherwise.'),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="A folder below which file:// media may lie.")
    ] = None,
    isolate_keys: Annotated[
        bool, typer.Option("--isolate-keys", help="Keys don't share remembered beginnings.")
    ] = False,
    vllm_metrics: Annotated[
        bool, typer.Option("--vllm-metrics", help="Metrics by vLLM's names too.")
    ] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write what is asked and answered to the log.")
    ] = False,
    together: Annotated[
        int, typer.Option(help="Sequences that run at once.", min=1, max=1024)
    ] = 32,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait; one more hears 429.", min=0)
    ] = 64,
    prompts_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory for all requests' prompts, images and audio included; 1 GiB.", min=0
        ),
    ] = None,
    cache_gb: Annotated[
        float | None, typer.Option(help="Memory for keys and values; half of what is free at most.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
) -> None:
    """Serve a model to OpenAI's clients, and to people with its own page."""
    from polyphi.serve import run
    from polyphi.serve.settings import Settings

    if media_root is not None and not media_root.is_dir():
        raise ValueError(f"--media-root {media_root}: expected a folder")
    settings = Settings(
        name or Path(model).expanduser().resolve().name,
        host=host,
        port=port,
        keys=tuple(key for key in api_key or () if key),
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        remote=tuple(allow_remote or ()),
        local=media_root,
        isolate=isolate_keys,
        vllm_names=vllm_metrics,
        log_prompts=log_prompts,
        max_waiting=max_waiting,
    )
    if prompts_gb is not None:
        settings = replace(settings, max_prepared_bytes=round(prompts_gb * 1e9))
    run.check_open(settings, insecure)
    listening = run.bind(settings)
    if not port:
        settings = replace(settings, port=listening.getsockname()[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    url = run.address(settings)

    def load(progress: "Progress") -> "FastAPI":
        # Imported here: torch takes seconds, and the port answers meanwhile.
        import polyphi
        from polyphi.serve.app import create_app

        phi = polyphi.load(
            model,
            device=device,
            quant=quant,
            together=together,
            cache_gb=cache_gb,
            kv=kv,
            progress=progress.update,
        )
        print(f"polyphi: {phi.room}", file=sys.stderr)
        return create_app(phi.engine, settings)

    def ready() -> None:
        console.print(f"{settings.name} at {url} (page), {url}/v1 (clients)", highlight=False)

    print(f"polyphi: loading {settings.name}; {url}/ready returns the progress", file=sys.stderr)
    run.serve(load, settings, listening, ready)


@app.command()
def inspect(
    model: ModelArgument,
    logits: Annotated[
        Path | None, typer.Option(help="A request.json whose logits to write.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .safetensors file for --logits.")] = None,
    quant: QuantOption = None,
) -> None:
    """Parts and parameters beside the report's; with --logits, exact numbers for comparison."""
    import polyphi
    from polyphi import inspection
    from polyphi.model import weights

    if (logits is None) != (out is None):
        raise ValueError("--logits request.json and --out file.safetensors belong together")
    if logits is not None and out is not None:
        tokens, vocabulary = inspection.write_logits(polyphi.load(model, quant=quant), logits, out)
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
    quant: Annotated[
        Literal["int8", "int4", "int8-all", "int4-all"] | None,
        typer.Option(help="Quantise it, as --quant of others does, and store it so."),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Shards like what it will answer, to round 4 bits for; several times."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")
    ] = None,
    merge: Annotated[
        str | None, typer.Option(help="Fold this adapter into the base weights first, and drop it.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of an evaluation of it, whose tables go into the model card."),
    ] = None,
) -> None:
    """Write a checkpoint in one of the public layouts, or quantised in one of our own, with a model card. MODEL may
    also be a .gguf file of Phi-4-mini, with its tokenizer beside it."""
    import tempfile

    from polyphi import model_card
    from polyphi.batch import Batch
    from polyphi.data import calibration
    from polyphi.data.shards import Shards
    from polyphi.model import gguf, weights
    from polyphi.phi import as_dtype, make_processor
    from polyphi.processing.tokenizer import Tokenizer

    if model.endswith(".gguf"):
        if merge or results or calibrate or layout not in ("native", "mini"):
            raise ValueError(
                "of a GGUF --quant and --dtype are understood; export what was written once more"
            )
        gguf.convert(model, out, quant=quant, dtype=as_dtype(dtype or "bfloat16"))
        console.print(f"wrote {out} ({quant or 'mini'}), the language model of {model}")
        return
    folder = weights.locate(model)
    text = model_card.card(folder, layout, source=model, merged=merge, results=results, quant=quant)
    cards = model_card.placed(text, out)
    kind = as_dtype(dtype) if dtype else None
    # merged in the type that is written: in float32 nothing is rounded
    loaded = weights.load(folder, dtype=kind if merge else None)
    if merge:
        loaded.merge_adapter(merge)
    rows: list[Batch] = []
    if calibrate:
        processor = make_processor(loaded.config, Tokenizer.load(folder))
        rows = calibration.rows(processor, [Shards(source) for source in calibrate])
    with tempfile.TemporaryDirectory() as made:
        for name, written in cards.items():
            (Path(made) / name).write_text(written, encoding="utf-8")
        beside = [*weights.files_beside(folder, layout), *sorted(Path(made).iterdir())]
        weights.save(loaded, out, layout, dtype=kind, quant=quant, calibration=rows, files=beside)
    console.print(f"wrote {out} ({quant or layout}), its card in {list(cards)[-1]}")
    if len(cards) > 1:
        console.print(f"{out / 'README.md'} is your own and stays as it was")


@app.command()
def plan(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE...]", help="Stages; all without.")
    ] = None,
    size: SizeOption = "full",
    devices: Annotated[
        str, typer.Option(help="Number and name: A100, H100, H200, B200, L4 or cpu.")
    ] = "64xH100",
    shard: Annotated[
        int, typer.Option(help="Devices that share the decoder's layers among them.")
    ] = 1,
    micro_tokens: Annotated[int, typer.Option(help="Tokens of a pack.")] = 8192,
    activations: Annotated[str, typer.Option(help="keep or recompute.")] = "keep",
    context: Annotated[int, typer.Option(help="Devices that share a pack of text.")] = 1,
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
    on = cost.Switches(shard, micro_tokens, activations, context)  # type: ignore[arg-type]
    chosen, table = names or list(stages.ORDER), sizes.load(size)
    if dry_run:
        from polyphi.dry_run import told

        for name in chosen:
            console.print(told(cost.subject(name, table), shard, context), highlight=False)
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


class _Evaluation(TyperGroup):
    """`eval MODEL ...` is `eval run MODEL ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    name="eval",
    cls=_Evaluation,
    help="Measure a model: polyphi eval MODEL --suite table4 --data DIR, or score recorded answers again.",
    no_args_is_help=True,
)
app.add_typer(evaluation)
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="table1 to table15, section5, all, mini, a benchmark, or a file of one; may be repeated.",
    ),
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Folder that holds the public data, or `hub`.")
]


@evaluation.command("run")
def eval_run(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, a checkpoint, http://host:8000/v1#name, or a folder of recorded answers."
        ),
    ],
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Without --suite: names of held-out tasks of a run.")
    ] = None,
    suites: SuiteOption = None,
    data: DataOption = None,
    mini: Annotated[
        bool, typer.Option("--mini", help="Stand-ins that packages ship in place of the data.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; the same command goes on.")
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            help="Who gives points: http://host/v1#name, self, or azure:PROJECT; repeatable.",
        ),
    ] = None,
    key_from: Annotated[
        str | None, typer.Option(help="Variable that holds the key of an endpoint as MODEL.")
    ] = None,
    judge_key_from: Annotated[
        str | None, typer.Option(help="Variable that holds the judges' and the simulator's key.")
    ] = None,
    simulator: Annotated[
        str | None,
        typer.Option(
            help="Who plays the user of adversarial dialogues: http://host/v1#name, or self."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Most samples of each row, the first ones.", min=1)
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/k: every k-th sample, from the i-th on, for one of k machines.")
    ] = "1/1",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out benchmarks whose data aren't there.")
    ] = False,
    size: SizeOption = "nano",
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quant: QuantOption = None,
) -> None:
    """Measure MODEL on the report's benchmarks (--suite), or a run's models on its held-out rows."""
    if not suites:
        from polyphi.reproduce.graph import Run

        if data or mini or judges or simulator or limit or shard != "1/1":
            raise ValueError(
                "--data, --mini, --judge, --simulator, --limit and --shard need a --suite"
            )
        if not (Path(model) / "stages").is_dir():
            raise ValueError(
                f"{model} is no run of `polyphi reproduce`; for other models say --suite table4 --data DIR, or "
                "--suite mini"
            )
        Run(size, Path(model), seed=seed, console=console).evaluate(*tasks or (), quant=quant)
        return
    from polyphi import measurement
    from polyphi.eval.sources import Data
    from polyphi.eval.tables import markdown

    if tasks:
        raise ValueError(f"with --suite nothing else is named, found {tasks[0]!r}")
    if "mini" in suites and data is not None:
        raise ValueError(f"the suite mini has data of its own; leave out --data {data}")
    mini = mini or "mini" in suites
    if "mini" in suites and (Path(model) / "stages").is_dir():
        from polyphi.reproduce.graph import Run

        Run(size, Path(model), seed=seed, console=console).evaluate(quant=quant)
    if not mini and data is None:
        raise ValueError(
            "where are the data? --data DIR (`polyphi eval check-data` tells what it should hold), --data hub, or "
            "--mini"
        )
    number, slash, of = shard.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ValueError(f"--shard is i/k with 1 <= i <= k, such as 2/8; found {shard!r}")
    own = measurement.subject(model, quant=quant, device=device, key_from=key_from)
    rows = measurement.measure(
        own,
        suites,
        out or measurement.results(model, own, suites),
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


@evaluation.command("check-data")
def eval_check_data(
    data: Annotated[str, typer.Argument(help="Folder that holds the public data, or `hub`.")],
    suites: SuiteOption = None,
) -> None:
    """Say what of the benchmarks' data is missing or isn't as expected, and where it comes from."""
    from polyphi import measurement
    from polyphi.eval.benchmark import suite
    from polyphi.eval.sources import Data

    chosen = suite(*suites or ("all",))
    wrong = measurement.complaints(chosen, Data(None if data == "hub" else Path(data)))
    for benchmark in chosen:
        for said in wrong.get(benchmark.name, ["as expected"]):
            console.print(f"{benchmark.name}: {said}", highlight=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


@evaluation.command("synthesise")
def eval_synthesise(
    names: Annotated[
        list[str], typer.Argument(help="Benchmarks whose questions are heard, or suites of them.")
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Folder of the data; the spoken sets come to lie in it.")
    ],
    texts: Annotated[
        str | None, typer.Option(help="Folder of the text sets, or `hub`; --data otherwise.")
    ] = None,
    voices: Annotated[
        list[str] | None,
        typer.Option(
            "--voice",
            help="espeak-ng:f2, flite:slt, http://host/v1#MODEL:VOICE or a command with {text}; may be repeated.",
        ),
    ] = None,
    listener: Annotated[
        str | None, typer.Option(help="Who writes down what clips say: http://host/v1#MODEL.")
    ] = None,
    worst: Annotated[
        float,
        typer.Option(
            help="WER of a clip above which, with a listener, the other voices try.", min=0
        ),
    ] = 0.3,
    key_from: Annotated[
        str | None, typer.Option(help="Variable that holds the listener's key.")
    ] = None,
) -> None:
    """Read text questions aloud, for the benchmarks whose questions are heard; goes on where it stopped."""
    from polyphi.eval import spoken
    from polyphi.eval.sources import Data

    spoken.read_aloud(
        names,
        data,
        Data(None if texts == "hub" else Path(texts or data)),
        voices=[spoken.voice_of(told) for told in voices or ("espeak-ng",)],
        hear=spoken.listener(listener, key_from) if listener else None,
        worst=worst,
        console=console,
    )


@evaluation.command("score")
def eval_score(
    folder: Annotated[Path, typer.Argument(help="Folder with the per-sample .jsonl files.")],
    suites: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="Files of benchmarks of your own among them; may be repeated."
        ),
    ] = None,
) -> None:
    """Compute every score again from recorded answers, without the model."""
    if (folder / "model.json").exists():
        from polyphi.measurement import rescored

        found: list[Any] = [row.as_dict() for row in rescored(folder, suites or ())]
    else:
        from polyphi.eval.run import rescore

        found = rescore(folder)
    print(json.dumps(found, indent=1, ensure_ascii=False))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    more: typer.Context,
    name: Annotated[str, typer.Argument(help="train, engine or kernels.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON list of rows on standard output.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Turns of each side.", min=1)] = 3,
) -> None:
    """Side by side with public peers in one run; needs a checkout and a quiet machine. Options that are not named here
    are the benchmark's own (`python benchmarks/NAME.py --help`)."""
    folder = Path(__file__).parents[1] / "benchmarks"
    if not folder.exists():
        raise ValueError(
            f"bench runs scripts of a checkout, and there is no {folder}; clone the repository and run "
            "`pip install --editable '.[dev]'` in it"
        )
    if name not in (known := sorted(p.stem for p in folder.glob("*.py") if p.stem != "sidebyside")):
        raise ValueError(f"unknown benchmark {name!r}; the benchmarks are {', '.join(known)}")
    command = [sys.executable, str(folder / f"{name}.py"), "--repeats", str(repeats)]
    command += [*(["--json"] if as_json else []), *more.args]
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)


def _pairs(columns: str | None) -> dict[str, str]:
    """`answer=text,audio=clip` as a mapping."""
    pairs = [pair.partition("=") for pair in columns.split(",")] if columns else []
    if wrong := [ours for ours, sign, theirs in pairs if not (ours and sign and theirs)]:
        raise ValueError(f"--columns is OURS=YOURS,..., such as answer=text; found {wrong[0]!r}")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


EXTRAS = {
    "datatrove": "curate",
    "sklearn": "curate",
    "jiwer": "eval",
    "sacrebleu": "eval",
    **dict.fromkeys(("fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client"), "serve"),
}
"""Package -> the extra that brings it."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors that users can mend become one line."""
    try:
        if code := app(arguments, standalone_mode=False):  # what a verb gave `typer.Exit`
            sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        lacking = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and lacking in EXTRAS:
            extra = f'pip install "polyphi[{EXTRAS[lacking]}]"'
            print(f"polyphi: this needs {lacking}; `{extra}` brings it", file=sys.stderr)
            sys.exit(1)
        code = (
            2
            if isinstance(error, ValueError | FileNotFoundError)
            else 1
            if isinstance(error, OSError | RuntimeError)
            else None
        )
        if hasattr(error, "exit_code"):  # a usage error, which click words itself
            said = error.format_message().rstrip(".")  # type: ignore[attr-defined]
            said = said.replace("Value error, ", "")
            command = getattr(getattr(error, "ctx", None), "command_path", "polyphi")
            print(f"polyphi: {said}. See `{command} --help`.", file=sys.stderr)
            sys.exit(error.exit_code)
        if code is None:
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free some space and run the same command again, nothing is lost" if full else ""
        print(f"polyphi: {error}{advice}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
