"""Makes two images of the README with the nano model of the package polyphi-nano: `docs/terminal.svg`, a recording of
real commands in a terminal, and `docs/page.png`, the chat page.

    pip install asciinema==2.4.0                    # writes what a terminal shows, with its times
    npm install --global svg-term-cli@2.1.1         # turns that into an animated SVG
    apt-get install chafa                           # shows a picture in a terminal
    apt-get install chromium chromium-driver        # for the page; Selenium comes with `make setup`
    .venv/bin/python -m tests.record terminal
    .venv/bin/python -m tests.record page

The digit and the clip of spoken digits are those of the package. All outputs are those of the commands. The recording
keeps the time between two outputs, but at most 1.2 seconds of it: loading torch and the model takes longer on a busy
machine. The typing is simulated.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile

from tests.fixtures.processes import free_port

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = Path(__file__).parents[1] / "models" / "nano" / "polyphi_nano"
COLUMNS, ROWS = 80, 27
MAX_GAP, LAST = 1.2, 3.0
"""Seconds: the longest pause between two outputs, and how long the last one stays."""
QUESTION = "Read the digit."
ASK = f"""\
import base64
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
photo = base64.b64encode(open("digit.png", "rb").read()).decode()
content = [{{"type": "image_url", "image_url": {{"url": f"data:image/png;base64,{{photo}}"}}}},
           {{"type": "text", "text": "{QUESTION}"}}]
messages = [{{"role": "user", "content": content}}]
answer = client.chat.completions.create(model="nano", messages=messages)
print(answer.choices[0].message.content)
"""
TYPED = """\
type() {
    printf '\\033[1;32m$\\033[0m '
    sleep .4
    for ((i = 0; i < ${#1}; i += 3)); do printf '%s' "${1:i:3}"; sleep .06; done
    echo
    eval "$1"
}
"""


def main(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        if what == "terminal":
            record(Path(folder), DOCS / "terminal.svg")
        elif what == "page":
            photograph(Path(folder), DOCS / "page.png")
        else:
            raise SystemExit(f"{what!r}: expected terminal or page")


def write_files(folder: Path) -> None:
    """A newcomer's folder: an image, a recording, a program that asks the server."""
    (folder / "ask.py").write_text(ASK)
    shutil.copy(PACKAGE / "media" / "digit.png", folder / "digit.png")
    (clip,) = (PACKAGE / "media").glob("asr_digits.*")
    soundfile.write(folder / "clip.wav", *soundfile.read(clip))


def record(folder: Path, out: Path) -> None:
    """Types the commands in a terminal of asciinema's and draws it."""
    steps = (
        "chafa -c full --symbols half -s 16x8 digit.png",
        f'polyphi chat nano --image digit.png "{QUESTION}"',
        "polyphi transcribe nano clip.wav",
        "polyphi serve nano 2> log.txt &",
        "tail -3 ask.py",
        "python ask.py",
    )
    script = TYPED + "".join(f"type {shlex.quote(step)}\n{wait(step)}" for step in steps)
    (folder / "script.sh").write_text(f"{script}sleep 1\nkill %1\n")
    cast = folder / "terminal.cast"
    size = ["--cols", str(COLUMNS), "--rows", str(ROWS)]
    command = ["asciinema", "rec", "--quiet", *size, "-c", "bash script.sh", str(cast)]
    subprocess.run(command, cwd=folder, env=environment(), check=True)
    cap_gaps(cast)
    draw = ["svg-term", "--in", str(cast), "--out", str(out), "--window", "--no-cursor"]
    subprocess.run(draw, env=environment(), check=True)
    out.write_text(narrowed(out.read_text()))
    print(f"{out}: {out.stat().st_size / 1000:.0f} KB")


def narrowed(svg: str) -> str:
    """The drawing with columns of one unit. svg-term places words at 1.002 units a column, and characters of some
    fonts are wider than one, so that the last of 80 would reach into the next frame."""
    svg = svg.replace('font-size="1.67"', 'font-size="1.65"')
    return re.sub(
        r'<text x="([\d.]+)"', lambda m: f'<text x="{round(float(m[1]) / 1.002, 3):g}"', svg
    )


def wait(step: str) -> str:
    """What a person does after a command, as a line of the script: wait until the server answers."""
    if "serve" not in step:
        return ""
    return "until curl --silent --fail http://127.0.0.1:8000/ready >/dev/null; do sleep .1; done\n"


def environment() -> dict[str, str]:
    """`polyphi` and `python` are those that run this file."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    extra = {
        "PYTHONPATH": str(PACKAGE.parent),
        "TERM": "xterm-256color",
        "PYTHONWARNINGS": "ignore",
    }
    return {**os.environ, "PATH": path, **extra}


def cap_gaps(cast: Path) -> None:
    """Shortens long pauses, and adds one at the end, before the recording starts again."""
    header, *lines = cast.read_text().splitlines()
    events, shift, before = [], 0.0, 0.0
    for moment, kind, text in map(json.loads, lines):
        shift += max(0.0, moment - before - MAX_GAP)
        before = moment
        events.append([round(moment - shift, 3), kind, text])
    events.append([events[-1][0] + LAST, "o", " "])
    print(f"{before:.1f} s recorded, {events[-1][0]:.1f} s shown")
    cast.write_text("\n".join([header, *map(json.dumps, events)]) + "\n")


def photograph(folder: Path, out: Path) -> None:
    """Asks for the digit on the chat page, in Chromium."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("--headless=new", "--no-sandbox", "--window-size=1280,800"):
        options.add_argument(option)
    with serving(folder) as url:
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.get(url)
            for name, prompt, adapter in (
                ("clip.wav", "Transcribe the audio clip into text.", "speech"),
                ("digit.png", QUESTION, "vision"),
            ):
                driver.find_element(By.ID, "new").click()
                driver.find_element(By.ID, "files").send_keys(str(folder / name))
                WebDriverWait(driver, 60).until(
                    lambda d: d.find_element(By.ID, "send").is_enabled()
                )
                driver.find_element(By.ID, "draft").send_keys(prompt, "\n")
                WebDriverWait(driver, 300).until(
                    lambda d, adapter=adapter: f"{adapter} adapter" in d.page_source
                )
            driver.save_screenshot(str(out))
        finally:
            driver.quit()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of the model, on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "polyphi.cli", "serve", "nano", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, env=environment())
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/ready").close()
                break
            except OSError:  # no connection yet, or 503 while the model loads
                assert server.poll() is None, "the server has stopped"
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("expected: python -m tests.record terminal|page")
    main(*sys.argv[1:])
