"""Errors of the command line as one line that says what to do, and what a user of another program may have meant."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cyclopts import CycloptsError
from cyclopts.exceptions import UnknownCommandError, UnknownOptionError, UnusedCliTokensError

ADVICE = {
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.EEXIST: "it exists already; choose another name, or remove it",
    errno.EACCES: "permission is denied; choose a path that you may read and write",
    errno.EPERM: "this isn't permitted; choose a path that you may read and write",
    errno.EROFS: "the file system is read-only; choose a path on another one",
    errno.EISDIR: "expected a file, found a folder; give the path of a file",
    errno.ENOTDIR: "a part of the path is a file; give a path of folders",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your quota of the disk is used up; free some space",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n`",
    errno.EADDRINUSE: "the address is in use; choose another port",
}
"""Number of a system's error -> what it means for the path before it, and what to do."""
RESUMABLE = ("train", "reproduce", "curate", "pull", "finetune", "eval")
"""Commands that resume if they run again."""
OPTIONS = {
    **dict.fromkeys(
        ("-p", "--prompt"), 'the prompt follows the model: polyphi chat MODEL "PROMPT"'
    ),
    **dict.fromkeys(("-m", "--model"), "the model is the first word after the command"),
    **dict.fromkeys(
        ("-n", "--n-predict", "--num-predict", "--max-new-tokens", "--max-length"),
        "the length of an answer is --max-tokens",
    ),
    "--temp": "the temperature of sampling is --temperature",
    **dict.fromkeys(
        ("--load-in-4bit", "--quantization", "--dtype", "--torch-dtype"),
        "weights are quantized with --quant int4 or int8",
    ),
    **dict.fromkeys(
        ("-ngl", "--n-gpu-layers", "--gpus", "--cuda"), "the device is --device cuda or cpu"
    ),
    **dict.fromkeys(
        ("--max-model-len", "-c", "--ctx-size", "--gpu-memory-utilization"),
        "the context is as long as memory allows; `polyphi serve` limits it with --cache-gb",
    ),
    **dict.fromkeys(
        ("--language", "--task", "--translate"),
        "the language of a recording is detected; --to LANGUAGE translates",
    ),
    **dict.fromkeys(
        ("-o", "--output", "--output-dir", "--output_dir", "--output-format", "--output_format"),
        "the folder of results is --out, and the format of transcripts is --format",
    ),
    **dict.fromkeys(
        ("--adapter-path", "--lora-modules", "--lora-path"), "an adapter is --lora NAME=FOLDER"
    ),
    "--trust-remote-code": "polyphi runs no remote code; leave the option out",
    "--stream": "answers are streamed always; leave the option out",
}
"""Options of other programs -> ours. Options that are spelled similarly are found without this table."""
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")
"""The name of a file or folder while it is written (runtime/files.py)."""


def resumes(words: Sequence[str]) -> bool:
    """Whether a command line resumes its work if it runs again."""
    command = next((word for word in words if not word.startswith("-")), "")
    has_out = any(word.partition("=")[0] == "--out" for word in words)
    return command in RESUMABLE or (command == "transcribe" and has_out)


def interrupted(words: Sequence[str]) -> str:
    """The message of a command that Ctrl-C has interrupted."""
    return "interrupted" + (": run the same command again to resume" if resumes(words) else "")


def sentence(error: Exception, words: Sequence[str]) -> str:
    """An error as a line; that of the operating system with what happened, where, and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    again = " and run the same command again to resume" if is_full and resumes(words) else ""
    if error.strerror is None:  # a sentence of ours
        return f"{error}; free some space{again}" if is_full else str(error)
    name = ""
    if error.filename is not None and not isinstance(error.filename, int):
        path = Path(str(error.filename))
        unfinished = _PARTIAL.fullmatch(path.name)
        name = f"{path.with_name(unfinished[1]) if unfinished else path}: "
    number = error.errno or 0
    is_plain = error.strerror == os.strerror(number)
    return name + (ADVICE.get(number, error.strerror) if is_plain else error.strerror) + again


def usage(error: CycloptsError, program: str, words: Sequence[str]) -> str:
    """The line for a wrong option or argument."""
    command = " ".join((program, *(error.command_chain or ())))
    text = str(error)
    if isinstance(error, UnknownOptionError):
        name = (error.token.keyword or error.token.value).partition("=")[0]
        text = f"unknown option {name}: {OPTIONS[name]}" if name in OPTIONS else text
    elif isinstance(error, UnusedCliTokensError) and words[:1] == ["chat"]:
        text = f'expected one prompt, found more words: {", ".join(error.unused_tokens or ())}; put it in quotes: "..."'
    if isinstance(error, UnknownCommandError) and "Did you mean" in text:
        text = text.partition(" Available commands")[0]
    end = "" if text.endswith((".", "?")) else "."
    return f"{text}{end} See `{command} --help`."
