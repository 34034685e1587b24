"""Accuracy of a model on inputs that none of our generators made: ten drawings and ten recordings, sent on the chat
page in Chromium.

python benchmarks/out_of_distribution.py runs/nano --out foreign.png    # needs espeak-ng, chromium and chromium-driver

Five digits and five shapes are drawn by the browser, stroke by stroke; ten numbers come through a microphone, spoken by
espeak-ng's voices of accents and variants that are in no list of polyphi. The picture shows all of them with their
answers.
"""

import argparse
import base64
import io
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from polyphi.types.transcript import TRANSCRIBE
from polyphi_recipe.synthetic.voices import ACCENTS, VARIANTS

SIDE = 112
STROKES = {
    "0": "M56 18 C22 18 24 94 56 94 C88 94 90 18 56 18",
    "1": "M40 34 L60 18 L60 95",
    "3": "M34 24 C60 8 84 30 54 52 C92 58 76 104 32 90",
    "4": "M66 95 L66 20 L28 68 L86 68",
    "7": "M30 22 L82 22 L50 95",
}
"""Digits as a pen draws them: SVG paths on a sheet of 112 x 112."""
SHAPES = {
    ("circle", "red"): "M56 16 A40 40 0 1 0 56.1 16 Z",
    ("triangle", "blue"): "M56 16 L98 94 L14 94 Z",
    ("square", "green"): "M20 20 L92 20 L92 92 L20 92 Z",
    ("star", "orange"): "M56 12 L67 44 L101 44 L74 64 L84 97 L56 77 L28 97 L38 64 L11 44 L45 44 Z",
    (
        "heart",
        "purple",
    ): "M56 96 C4 60 12 16 40 20 C50 22 55 30 56 36 C57 30 62 22 72 20 C100 16 108 60 56 96 Z",
}
PAINT = {
    "red": "#d8281f",
    "blue": "#2455d6",
    "green": "#1f9a3a",
    "orange": "#f08c00",
    "purple": "#8a2bc2",
}
SPOKEN = {
    "4 2": "en-029+quincy",
    "7 1 9": "en-gb-x-gbclan+zac",
    "3 8": "en-gb-x-gbcwmd+ian",
    "5 0 6": "en-029+anika",
    "9 4 2 7": "en-gb-x-gbclan+reed",
    "21": "en-gb-x-gbcwmd+edward",
    "48": "en-029+robert",
    "63": "en-gb-x-gbclan+pedro",
    "75": "en-gb-x-gbcwmd+benjamin",
    "90": "en-029+gustave",
}
"""Spoken number -> espeak-ng's accent and variant. Digits apart are written together, a number in words."""
WORDS = {
    "21": "twenty-one",
    "48": "forty-eight",
    "63": "sixty-three",
    "75": "seventy-five",
    "90": "ninety",
}


class Page:
    """The chat page in a separate browser, whose microphone plays `speech` (a WAV file)."""

    def __init__(self, url: str, folder: Path, speech: Path | None = None) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--user-data-dir={folder}",
        ]
        if speech is not None:
            arguments.append(f"--use-file-for-fake-audio-capture={speech}%noloop")
        for option in arguments:
            options.add_argument(option)
        self.driver = webdriver.Chrome(
            options, webdriver.ChromeService(shutil.which("chromedriver"))
        )
        self.driver.get(url)
        self.until(lambda: self.all("body.ready"), "the page")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def until(self, true: Callable[[], Any], what: str) -> None:
        WebDriverWait(self.driver, 60, 0.05).until(lambda _: true(), f"no sign of {what}")

    def drawn(self, path: str, ink: str, *, filled: bool) -> bytes:
        """A PNG of a path that the browser draws."""
        url = self.driver.execute_script(
            """const sheet = document.createElement("canvas");
            sheet.width = sheet.height = arguments[0];
            const pen = sheet.getContext("2d");
            pen.fillStyle = "#f7f5ef";
            pen.fillRect(0, 0, arguments[0], arguments[0]);
            pen.fillStyle = pen.strokeStyle = arguments[2];
            pen.lineWidth = 9;
            pen.lineCap = pen.lineJoin = "round";
            const path = new Path2D(arguments[1]);
            arguments[3] ? pen.fill(path) : pen.stroke(path);
            return sheet.toDataURL("image/png");""",
            SIDE,
            path,
            ink,
            filled,
        )
        return base64.b64decode(url.partition(",")[2])

    def attach(self, name: str, data: bytes) -> None:
        """Drop a file on the page."""
        self.driver.execute_script(
            """const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[0], {type: "image/png"}));
            for (const name of ["dragenter", "dragover", "drop"])
              document.body.dispatchEvent(new DragEvent(name, {dataTransfer, bubbles: true}));""",
            name,
            base64.b64encode(data).decode(),
        )
        self.until(lambda: len(self.all("#attachments li")) == 1, "the picture")

    def record(self, seconds: float) -> None:
        """Record from the microphone for `seconds`."""
        self.all("#mic")[0].click()
        self.until(lambda: self.all("#chat-timer")[0].text, "the recorder")
        time.sleep(seconds)
        self.all("#chat-record-stop")[0].click()
        self.until(lambda: len(self.all("#attachments li")) == 1, "the recording")

    def ask(self, question: str) -> str:
        """The answer to a first message with the attached files."""
        self.all("#draft")[0].send_keys(question)
        self.all("#send")[0].click()
        self.until(
            lambda: self.all(".message.assistant") and self.all("#stop")[0].get_attribute("hidden"),
            "an answer",
        )
        return str(self.all(".message.assistant .markdown")[-1].text).strip()


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of a server of a run's model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    polyphi = str(Path(sys.executable).with_name("polyphi"))
    command = [polyphi, "serve", str(model), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def opened(url: str, speech: Path | None = None) -> Iterator[Page]:
    with tempfile.TemporaryDirectory() as folder:
        page = Page(url, Path(folder), speech)
        try:
            yield page
        finally:
            page.driver.quit()


def plain(text: str) -> str:
    """The text's letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def drawings(url: str) -> Iterator[tuple[Image.Image, str, str, str]]:
    """(image, question, expected answer, answer) of each drawing."""
    questions = [
        (path, "#20242c", False, "What digit is this?", digit) for digit, path in STROKES.items()
    ]
    for number, ((shape, colour), path) in enumerate(SHAPES.items()):
        question, right = (
            ("What shape is this?", shape) if number % 2 else ("What colour is this?", colour)
        )
        questions.append((path, PAINT[colour], True, question, right))
    for path, ink, filled, question, right in questions:
        with opened(url) as page:
            data = page.drawn(path, ink, filled=filled)
            page.attach("drawing.png", data)
            yield Image.open(io.BytesIO(data)), question, right, page.ask(question)


def recordings(url: str) -> Iterator[tuple[str, str, str, str]]:
    """(voice, spoken words, expected text, transcript) of each recording."""
    for digits, voice in SPOKEN.items():
        accent, _, variant = voice.partition("+")
        known = {name.lower() for names in VARIANTS.values() for name in names}
        assert accent not in ACCENTS["en"] and variant.lower() not in known, f"{voice} is ours"
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "speech.wav"
            words = WORDS.get(digits, digits)
            # A moment of silence before, as a microphone has it.
            spoken = [
                "espeak-ng",
                "-v",
                voice,
                "-w",
                str(clip),
                "-m",
                f'<break time="300ms"/>{words}',
            ]
            subprocess.run(spoken, check=True, capture_output=True)
            seconds = 1.0 + 0.5 * len(words.split())
            with opened(url, clip) as page:
                page.record(seconds)
                yield voice, words, WORDS.get(digits, digits.replace(" ", "")), page.ask(TRANSCRIBE)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("model", type=Path)
    options.add_argument("--out", type=Path, help="a picture of all drawings and answers")
    args = options.parse_args()
    figure = Figure(figsize=(11, 6.2))
    subplots = iter(figure.subplots(4, 5).flat)
    right = {"drawings": 0, "recordings": 0}
    with served(args.model) as url:
        for picture, question, expected, answer in drawings(url):
            good = plain(answer) == plain(expected)
            right["drawings"] += good
            axes = next(subplots)
            axes.imshow(picture)
            axes.set_title(
                f"{question}\n{answer[:24]}", fontsize=8, color="green" if good else "red"
            )
            print(f"{question:<22}{expected:<10}{answer[:40]}", flush=True)
        for voice, words, expected, answer in recordings(url):
            good = plain(answer) == plain(expected)
            right["recordings"] += good
            caption = f"{voice}\nsays: {words}\n{answer[:24]}"
            next(subplots).text(
                0.5, 0.5, caption, ha="center", fontsize=8, color="green" if good else "red"
            )
            print(f"{voice:<28}{words:<14}{answer[:40]}", flush=True)
    for axes in figure.axes:
        axes.axis("off")
    if args.out:
        figure.tight_layout()
        figure.savefig(args.out, dpi=110)
    print(f"right: {right['drawings']} of 10 drawings, {right['recordings']} of 10 recordings")


if __name__ == "__main__":
    main()
