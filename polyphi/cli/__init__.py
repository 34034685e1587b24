"""The command line, one file per command. Invalid arguments print one line and exit with 2, failed runs with 1."""

import errno
import logging
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from polyphi.cli import (
    ablate,
    bench,
    cache,
    chat,
    claims,
    curate,
    doctor,
    eval,
    export,
    inspect,
    plan,
    pull,
    reproduce,
    scaling,
    serve,
    train,
    transcribe,
)

app = typer.Typer(
    name="polyphi",
    help="Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Worker processes (data/workers.py) import this file before grain, which would otherwise warn about a missing profiler.
logging.getLogger("absl").setLevel(logging.ERROR)


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


app.command()(reproduce.reproduce)
app.command()(train.train)
app.command()(scaling.scaling)
app.command()(ablate.ablate)
app.command()(claims.claims)
app.command()(curate.curate)
app.command()(chat.chat)
app.command()(transcribe.transcribe)
app.command()(serve.serve)
app.command()(pull.pull)
app.add_typer(cache.app)
app.command()(inspect.inspect)
app.command()(export.export)
app.command()(plan.plan)
app.command()(doctor.doctor)
app.add_typer(eval.app)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    bench.bench
)

EXTRAS = {
    "datatrove": "curate",
    "sklearn": "curate",
    "jiwer": "eval",
    "sacrebleu": "eval",
    **dict.fromkeys(("fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client"), "serve"),
}
"""Package -> the extra that installs it."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors that users can fix are printed as one line."""
    try:
        if code := app(
            arguments, standalone_mode=False
        ):  # the code that a command passed to `typer.Exit`
            sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        missing = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and missing in EXTRAS:
            extra = f'pip install "polyphi[{EXTRAS[missing]}]"'
            print(
                f"polyphi: this command needs {missing}; install it with `{extra}`", file=sys.stderr
            )
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
            print(f"polyphi: {message}. See `{command} --help`.", file=sys.stderr)
            sys.exit(error.exit_code)
        if code is None:
            raise
        disk_full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free some space and run the same command again to resume" if disk_full else ""
        print(f"polyphi: {error}{advice}", file=sys.stderr)
        sys.exit(code)
