"""First guesses of users of transformers, llama.cpp, ollama, vLLM and whisper on the command line, and what they get.

    python examples/first_guesses_shell.py runs/nano/model

Each guess runs as in a shell. It works (exit code 0), or is refused in one line that says what to write. The table has
the guess, the exit code and the first line of its output; the script exits with 1 if a guess does neither.
"""

import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

WIDTH = 100
"""Characters of a line that are shown."""


@dataclass(frozen=True)
class Guess:
    """A command line after `polyphi`. `says`: a part of its one line; None if it works. `stdin`: what is piped in."""

    words: list[str]
    says: str | None = None
    stdin: str = ""


def guesses(model: str, folder: Path) -> list[Guess]:
    """The guesses, with a model and a folder of recordings, a.wav and b.wav."""
    a, b, none = str(folder / "a.wav"), str(folder / "b.wav"), str(folder / "missing.png")
    short = ["--max-tokens", "4"]
    return [
        Guess([]),
        Guess(["-h"]),
        Guess(["help"]),
        Guess(["--version"]),
        Guess(["version"]),
        Guess(["chat", "--help"]),
        Guess(["eval", "--help"]),
        Guess(["run", model, "hi"], '"chat"'),
        Guess(["generate", "--model", model], '"chat"'),
        Guess(["list"], '"cache"'),
        Guess(["download", "owner/name"], '"pull"'),
        Guess(["chat", model, "hi", *short]),
        Guess(["chat", model, *short], stdin="hi\n"),
        Guess(
            ["chat", model, "hi", "--seed", "1", "--temperature", "0.7", "--top-p", "0.9", *short]
        ),
        Guess(["chat", model, "hi", "--system", "Answer briefly.", "--device", "cpu", *short]),
        Guess(["chat", model, "hi", "--max_tokens", "4"]),
        Guess(["chat", model, "-p", "hi"], 'polyphi chat MODEL "PROMPT"'),
        Guess(["chat", "-m", model], "first word"),
        Guess(["chat", model, "hi", "--temp", "0"], "--temperature"),
        Guess(["chat", model, "hi", "--max-new-tokens", "4"], "--max-tokens"),
        Guess(["chat", model, "hi", "--max-tokens", "-5"], "--max-tokens"),
        Guess(["chat", model, "what", "is", "this"], "quotes"),
        Guess(["chat", model, "hi", "--image", none], "missing.png"),
        Guess(["chat", model, "hi", "--image", "http://127.0.0.1:1/a.png"], "doesn't answer"),
        Guess(["chat", model, "hi", "--adapter", "medical"], "unknown adapter"),
        Guess(["chat", model, "hi", "--lora", "medical=nowhere"], "adapter_config.json"),
        Guess(["chat", "What is this?"], "polyphi chat MODEL"),
        Guess(["chat"], "MODEL"),
        Guess(["chat", "model.gguf", "hi"], "polyphi export model.gguf"),
        Guess(["chat", "phi4", "hi"], "phi4"),
        Guess(["serve"], "MODEL"),
        Guess(["serve", model, "--port", "80x"], "--port"),
        Guess(["serve", model, "--tensor-parallel-size", "2"], "--tensor-parallel-size"),
        Guess(["transcribe", a, b], "polyphi transcribe MODEL"),
        Guess(["transcribe", a, model], f"polyphi transcribe {model} {a}"),
        Guess(["transcribe", model, "missing.wav"], "missing.wav"),
        Guess(["transcribe", model, a, "--language", "en"], "--to"),
        Guess(["transcribe", model, a, "--to", "Klingon"], "Klingon"),
        Guess(["export", model, "--out", "/proc/exported"], "check the path"),
    ]


def run(guess: Guess) -> tuple[int, list[str]]:
    """(exit code, lines) of a guess: of its output, or of its error if it is refused."""
    done = subprocess.run(
        [sys.executable, "-m", "polyphi.cli", *guess.words],
        input=guess.stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stderr if done.returncode else done.stdout
    return done.returncode, text.strip().splitlines()


def is_good(guess: Guess, code: int, lines: list[str]) -> bool:
    """Whether a guess works, or is refused in one line with what it should say."""
    if guess.says is None:
        return code == 0
    return code in (1, 2) and len(lines) == 1 and guess.says in lines[0]


def main(model: str) -> int:
    """Print the table; return the exit code."""
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("a.wav", "b.wav"):
            with wave.open(str(folder / name), "wb") as clip:
                clip.setparams((1, 2, 16000, 0, "NONE", ""))
                clip.writeframes(bytes(32000))
        for guess in guesses(model, folder):
            code, lines = run(guess)
            good = is_good(guess, code, lines)
            bad += not good
            words = " ".join(f'"{word}"' if " " in word else word for word in guess.words)
            piped = f"echo {guess.stdin.strip()} | " if guess.stdin else ""
            print(f"{'' if good else 'BAD '}{code}  {piped}polyphi {words}")
            print(f"      {(lines or [''])[0][:WIDTH]}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/first_guesses_shell.py MODEL")
    sys.exit(main(sys.argv[1]))
