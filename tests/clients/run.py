"""Real clients against a served model, each in an environment of its own: which of their uses work.

    make test-clients                                    # all clients, against runs/nano
    python tests/clients/run.py runs/nano --only litellm llm
    python tests/clients/run.py runs/nano --docs         # also write the table into docs/clients.md

`clients.toml` lists the clients with their packages, `uses/` has one file per client: each test is one use, a skipped
test is a use that is left out on purpose, with the reason. Environments are kept in `.clients/`. The exit code is 1 if
a client couldn't be installed or one of its uses failed.
"""

import argparse
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import soundfile
from rich.console import Console

from polyphi.data.shards import Shards
from polyphi.runtime.rendering import table as markdown_table
from polyphi.types.messages import media
from polyphi.types.parts import Audio, Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCS = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
LIMIT = 1200
"""Seconds that the uses of one client may take."""
console = Console(soft_wrap=True)


@dataclass
class Client:
    """A client as in `clients.toml`, and the result of each of its uses."""

    name: str
    packages: list[str]
    uses: str
    purpose: str
    alone: list[str] = field(default_factory=list)  # installed without requirements, come first
    python: str = ""  # the oldest Python that it runs on, if that is newer than this one
    native: list[str] = field(default_factory=list)  # packages of npm whose install scripts run
    version: str = ""
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # use -> error
    left_out: dict[str, str] = field(default_factory=dict)  # use -> reason

    @property
    def in_node(self) -> bool:
        return self.uses.endswith(".mjs")


def clients(only: list[str]) -> list[Client]:
    """Return the clients with the given names, or all."""
    listed = tomllib.loads((HERE / "clients.toml").read_text(encoding="utf-8"))
    if unknown := set(only) - set(listed):
        raise SystemExit(
            f"unknown clients: {', '.join(sorted(unknown))}; expected some of {', '.join(listed)}"
        )
    return [Client(name, **entry) for name, entry in listed.items() if not only or name in only]


# ---------------------------------------------------------------------------------------------------------- the server


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """`polyphi serve` in a process of its own; yields its address."""
    command = [sys.executable, "-m", "polyphi.cli", "serve", str(model), "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        address = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        if address is None:
            raise SystemExit(
                f"the server didn't start; the end of {log}:\n{log.read_text()[-2000:]}"
            )
        yield address[0]
    finally:
        process.terminate()
        process.wait()


def write_media(run: Path, folder: Path) -> None:
    """Write a held-out picture and a held-out recording of the run, each with its question and its answer, as
    `picture.png`, `recording.wav` and `media.json`."""
    entries = {}
    for name, corpus, kind in (
        ("picture.png", "image_qa", Image),
        ("recording.wav", "asr", Audio),
    ):
        shards = Shards(run / "data" / corpus / "test")
        sample = next(s for s in shards if len(media(s.prompt, kind)) == 1)
        (medium,) = media(sample.prompt, kind)
        if kind is Image:
            (folder / name).write_bytes(medium.source)
        else:
            wave, rate = soundfile.read(io.BytesIO(medium.source))
            soundfile.write(folder / name, wave, rate)
        question = "".join(message.text for message in sample.prompt)
        entries[name] = {"question": question, "answer": sample.answer}
    (folder / "media.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1))


# ---------------------------------------------------------------------------------------------------------- one client


def install(client: Client, folder: Path) -> None:
    """Install the client's packages, unless this list of them is installed there; sets its version."""
    requirements = json.dumps([client.packages, client.alone])
    stamp = folder / "installed.json"
    if not stamp.exists() or stamp.read_text() != requirements:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if client.in_node:
            options = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
            run_command(["npm", "install", *options, *client.packages], folder)
            if client.native:
                run_command(["npm", "rebuild", *client.native], folder)
        else:
            run_command([interpreter(client), "-m", "venv", str(folder / "venv")], folder)
            pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
            run_command([*pip, "--upgrade", "pip"], folder)
            if client.alone:
                run_command([*pip, "--no-deps", *client.alone], folder)
            run_command([*pip, "pytest", *client.packages], folder)
        stamp.write_text(requirements)
    first = [*client.alone, *client.packages][0]
    name = npm_name(client) if client.in_node else re.split(r"[\[<>=~ ]", first)[0]
    if client.in_node:
        package = folder / "node_modules" / name / "package.json"
        client.version = json.loads(package.read_text())["version"]
    else:
        code = f"from importlib.metadata import version; print(version({name!r}))"
        client.version = run_command([str(folder / "venv/bin/python"), "-c", code], folder).strip()


def interpreter(client: Client) -> str:
    """Return the path of a Python that the client runs on. Raises RuntimeError if there is none."""
    oldest = tuple(map(int, client.python.split("."))) if client.python else sys.version_info[:2]
    if oldest <= sys.version_info[:2]:
        return sys.executable
    paths = (shutil.which(f"python3.{minor}") for minor in range(oldest[1], oldest[1] + 5))
    for path in filter(None, paths):
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    raise RuntimeError(f"{client.name} needs Python {client.python}, and there is none on the PATH")


def npm_name(client: Client) -> str:
    """Return the name of a client's first package without its version range: "@scope/name@^1" -> "@scope/name"."""
    return re.sub(r"(?<=.)@.*", "", client.packages[0])


def run_command(command: list[str], folder: Path) -> str:
    """Run a command; returns its output. Raises RuntimeError with the end of its output if it fails."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:6])} ... failed: {(done.stderr + done.stdout)[-800:]}"
        )
    return done.stdout


def try_uses(client: Client, folder: Path, environment: dict[str, str]) -> None:
    """Run the client's uses in its environment, and add their results to it."""
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    if client.in_node:
        for script in ("common.mjs", client.uses):
            shutil.copy(HERE / "uses" / script, folder / script)
        report = ["--test-reporter=junit", f"--test-reporter-destination={results}"]
        command = ["node", "--test", *report, client.uses]
    else:
        place = [
            "-c",
            os.devnull,
            "--rootdir",
            str(HERE / "uses"),
            "--confcutdir",
            str(HERE / "uses"),
        ]
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            f"--junitxml={results}",
        ]
        python = str(folder / "venv/bin/python")
        command = [python, "-m", "pytest", *place, *options, str(HERE / "uses" / client.uses)]
    with (folder / "output.txt").open("w") as output:
        try:
            subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            client.failed["all"] = f"took more than {LIMIT} s"
            return
    if not results.exists():
        client.failed["all"] = (folder / "output.txt").read_text()[-800:]
        return
    for case in ElementTree.parse(results).iter("testcase"):
        name = case.attrib["name"].removeprefix("test_").replace("_", " ")
        if (skipped := case.find("skipped")) is not None:
            client.left_out[name] = skipped.attrib.get("message", "")
        elif (error := next((e for e in case if e.tag in ("failure", "error")), None)) is not None:
            message = html.unescape(error.attrib.get("message", ""))  # Node escapes it twice
            client.failed[name] = message or (error.text or "")[-300:]
        else:
            client.passed.append(name)


# ----------------------------------------------------------------------------------------------------------- the table


def table(results: list[Client]) -> str:
    """Return the results as a Markdown table, with a list of what failed or was left out."""
    rows = [
        (
            *(client.name, client.version, client.purpose),
            f"{len(client.passed)} of {len(client.passed) + len(client.failed)}",
            len(client.left_out) or "",
        )
        for client in results
    ]
    lines = [
        markdown_table(("client", "version", "for", "uses that work", "left out"), rows),
        "",
    ]
    for client in results:
        for use, error in client.failed.items():
            lines.append(f"- {client.name}, {use}: fails ({one_line(error)})")
        for use, reason in client.left_out.items():
            lines.append(f"- {client.name}, {use}: left out, {one_line(reason)}")
    return "\n".join(lines).rstrip()


def one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def write_docs(text: str) -> None:
    """Put the table between its marks in docs/clients.md."""
    page = DOCS.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("run", type=Path, help="a finished run, such as runs/nano")
    parser.add_argument("--only", nargs="+", default=[], metavar="CLIENT")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/clients.md")
    arguments = parser.parse_args()
    chosen, run = clients(arguments.only), arguments.run.absolute()
    if arguments.docs and arguments.only:
        raise SystemExit("--docs writes the table of all clients: leave out --only")
    if not (run / "model").is_dir():
        raise SystemExit(
            f"{arguments.run} holds no finished run: `make nano` trains one in runs/nano"
        )
    out = ROOT / ".clients"
    out.mkdir(exist_ok=True)
    write_media(run, out)
    with serving(run, out / "server.log") as url:
        environment = {
            **os.environ,
            "POLYPHI_URL": url,
            "POLYPHI_MODEL": run.name,
            "POLYPHI_RUN": str(run),
            "POLYPHI_MEDIA": str(out),
            "OPENAI_API_KEY": "none",
        }
        for client in chosen:
            began = time.monotonic()
            try:
                install(client, out / client.name)
                try_uses(client, out / client.name, environment)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                client.failed["installation"] = str(error)
            counts = f"{len(client.passed)} passed, {len(client.failed)} failed, {len(client.left_out)} left out"
            console.print(
                f"{client.name:<20} {client.version:<10} {counts}, {time.monotonic() - began:.0f} s"
            )
            for use, error in client.failed.items():
                console.print(f"  {use}: {one_line(error)}", markup=False)
    (out / "results.json").write_text(json.dumps([asdict(c) for c in chosen], indent=1))
    text = table(chosen)
    console.print(f"\n{text}\n\ndetails: {out}", markup=False)
    if arguments.docs:
        write_docs(text)
    if any(client.failed for client in chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
