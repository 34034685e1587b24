"""The README's commands as a newcomer runs them: in their order, in a clean environment.

    python tests/release/readme.py --out FOLDER [--python python3.11]

Copies the shell and Python blocks of the sections in `SECTIONS` from README.md and runs them in FOLDER, with a clone of
this checkout in place of the repository's address. A local Hub (tests/fixtures/fake_hub.py) serves a tiny random
checkpoint in Microsoft's layout under the name of the public weights, so their commands are tried, not their answers. A
server runs in the background until the next section. Then the wheels are installed from a folder without an index, to
the first answer of the nano model about an image. Prints the seconds of each command, as Markdown.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:1] = [str(ROOT)]

from tests.fixtures import fake_hub, published  # noqa: E402

SECTIONS = ("Try it", "Run the public weights", "Fine-tune")
PUBLIC = "microsoft/Phi-4-multimodal-instruct"
REPOSITORY = "REPOSITORY"
"""What stands in the README for the repository's address, until a release fills it."""
READY = """\
until python -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8000/health")' 2>/dev/null
do kill -0 $server; sleep 0.2; done
"""


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """(section, language, text) of the code blocks in `SECTIONS`."""
    for section in page.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        if title in SECTIONS:
            for language, text in re.findall(r"(?ms)^```(\w*)\n(.*?)^```", section):
                yield title, language, text


def script(page: str) -> str:
    """A shell script of all blocks, which writes the seconds of each command to the file $TIMES."""
    lines = [
        "set -e",
        "server=",
        'stop() { test -z "$server" || kill $server; server=; }',
        "trap stop EXIT",
    ]
    before = ""
    for section, language, text in blocks(page):
        if section != before:
            lines.append("stop")
        before = section
        if language == "python":
            lines += timed(f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK", "the Python block")
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0].strip()
            if command.startswith("polyphi serve"):
                background = f"{command} >server.log 2>&1 &\nserver=$!\n{READY}"
                lines += timed(background, f"{command}, until it answers")
            elif command:
                lines += timed(command, command)
            if command == "cd polyphi":
                lines.append("cp ../photo.jpg ../clip.wav .")
    return "\n".join(lines) + "\n"


def timed(command: str, name: str) -> list[str]:
    quoted = name.replace("'", "'\\''")
    return [
        "start=$EPOCHREALTIME",
        command,
        f"""printf '%s %s %s\\n' "$start" "$EPOCHREALTIME" '{quoted}' >>"$TIMES" """,
    ]


def environment(out: Path, endpoint: str) -> dict[str, str]:
    """Variables of a newcomer: nothing of this environment's Python, empty caches, and the local Hub."""
    path = os.pathsep.join(
        p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != Path(sys.executable).parent
    )
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "VIRTUAL_ENV", "HF_", "OMP_"))
    }
    return inherited | {
        "PATH": f"{out / 'bin'}{os.pathsep}{path}",
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(out / "hub"),
        "POLYPHI_CACHE": str(out / "cache"),
        "TIMES": str(out / "times"),
    }


def media(folder: Path) -> None:
    """A newcomer's own files: a photo and a recording."""
    folder.mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "photo.jpg")
    wave = 0.1 * np.sin(np.arange(16_000) * 0.2)
    soundfile.write(folder / "clip.wav", wave, 16_000)


def offline(out: Path, variables: dict[str, str], command: str) -> float:
    """Seconds from `pip install --no-index` of the wheels, in an empty environment, to the end of a command."""
    python = out / "offline" / "bin" / "python"
    files, checkout = out / "files", out / "work" / "polyphi"
    shell(f"{out / 'bin' / 'python3'} -m venv {out / 'offline'}", out, variables)
    wheel = f"{python} -m pip wheel --quiet --wheel-dir {files} '.[serve]' ./models/nano"
    shell(wheel, checkout, variables)
    install = f"install --quiet --no-index --find-links {files} 'polyphi[serve]' polyphi-nano"
    start = time.perf_counter()
    shell(f"{python} -m pip {install}", out, variables)
    path = {"PATH": f"{python.parent}{os.pathsep}{variables['PATH']}", "HF_HUB_OFFLINE": "1"}
    shell(command, checkout, variables | path)
    return time.perf_counter() - start


def shell(code: str, folder: Path, variables: dict[str, str]) -> None:
    """Run a shell script. Raises SystemExit if a command fails, whose output is on the terminal."""
    result = subprocess.run(
        ["bash", "-c", code], cwd=folder, env=variables, stdin=subprocess.DEVNULL, check=False
    )
    if result.returncode:
        raise SystemExit(f"a command failed with status {result.returncode}, in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder for everything")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    options = parser.parse_args()
    with socket.socket() as listener:  # another server there would answer in place of ours
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 8000))
    out = options.out.resolve()
    out.mkdir(parents=True)
    (out / "bin").mkdir()
    (out / "bin" / "python3").symlink_to(options.python.resolve())
    published.write(out / "public" / PUBLIC)
    media(out / "work")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(
        line for _, _, text in blocks(page) for line in text.splitlines() if "--image" in line
    )
    with fake_hub.hub() as hub:
        hub.add(PUBLIC, out / "public" / PUBLIC)
        variables = environment(out, hub.address)
        shell(script(page).replace(f"clone {REPOSITORY}", f"clone {ROOT}"), out / "work", variables)
        seconds = offline(out, variables, first)
    print("| command | seconds |\n|---|---:|")
    for line in (out / "times").read_text(encoding="utf-8").splitlines():
        start, end, name = line.split(" ", 2)
        print(f"| `{name}` | {float(end) - float(start):.1f} |")
    print(
        f"| from `pip install --no-index` of the wheels to the answer of `{first}` | {seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
