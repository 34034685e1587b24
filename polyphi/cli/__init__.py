"""The command line, one file per command. A wrong argument gives one line and exit code 2, a failed run exit code 1."""

import errno
import logging
import sys
from typing import Any

import typer

from polyphi.cli import (
    ablate,
    bench,
    chat,
    claims,
    curate,
    eval,
    export,
    inspect,
    plan,
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
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Worker processes (data/workers.py) import this file before grain, which would warn that it has no profiler.
logging.getLogger("absl").setLevel(logging.ERROR)
app.command()(reproduce.reproduce)
app.command()(train.train)
app.command()(scaling.scaling)
app.command()(ablate.ablate)
app.command()(claims.claims)
app.command()(curate.curate)
app.command()(chat.chat)
app.command()(transcribe.transcribe)
app.command()(serve.serve)
app.command()(inspect.inspect)
app.command()(export.export)
app.command()(plan.plan)
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
