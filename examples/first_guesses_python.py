"""First guesses in Python of a user of transformers, vLLM or llama.cpp: each is tried on a model, and works or is
refused in one line that says what to do.

    python examples/first_guesses_python.py runs/nano/model
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image as pil
from rich.console import Console
from rich.table import Table

import polyphi

GUESSES = """
phi.generate("What is 2 + 2?").text
str(phi.generate("What is 2 + 2?"))
phi.generate(["What is 2 + 2?", "What is 3 + 3?"])
phi.generate({"role": "user", "content": "What is 2 + 2?"}).text
phi.generate("Which digit is it?", images=[picture]).text
phi.generate("Which digit is it?", images=[np.array(picture)]).text
phi.generate("Which digit is it?", images=[torch.rand(3, 40, 60)]).text
phi.generate("Which digit is it?", images="digit.png").text
phi.generate([{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}]).text
phi.generate([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}], images=[picture]).text
phi.generate([{"role": "user", "content": [{"type": "audio", "audio": clip}]}]).text
phi.generate([polyphi.Message.user(picture, "Which digit is it?")]).text
phi.generate("Hello", max_tokens=5, temperature=0.7, seed=1, stop="\\n").text
phi.generate("Hello", max_new_tokens=5)
phi.generate("Hello", do_sample=True)
phi.generate("Hello", num_beams=4)
phi.generate("Hello", sampling={"max_tokens": 5}).text
phi.generate("Hello", tools=[weather], max_tokens=20).tool_calls
phi.generate("A city?", response_format=form, max_tokens=60).text
phi.generate("A city?", response_format=City, max_tokens=60).text
phi.generate([polyphi.Message.system("Be brief.", tools=[weather]), polyphi.Message.user("Hello")], max_tokens=5).text
"".join(delta.text for delta in phi.stream("Hello", max_tokens=5))
phi.transcribe(polyphi.Audio(clip)).text
phi.transcribe(samples, sample_rate=16000).text
phi.transcribe((samples, 16000)).text
phi.transcribe(samples)
phi.transcribe(clip, language="de")
phi.tokenize("Hello")
phi.count("Hello").total
phi.embed("digit.png")
phi.score("2 + 2 =", 4)
polyphi.Message.user(None)
polyphi.Image(3)
polyphi.load(None)
polyphi.load("model", torch_dtype="bfloat16")
polyphi.load(phi.save(folder / "copy") or folder / "copy")
dir(polyphi)
phi
"""
"""Expressions, one a line, as a user would type them."""


def weather(city: str, days: int = 1) -> str:
    """The weather of a city.

    Args:
        city: its name in English
        days: from today on
    """
    return f"sunny in {city} for {days} days"


class City:
    """A form of answers, as a pydantic model has it; the core of polyphi doesn't need pydantic."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return FORM


FORM = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def outcomes(phi: polyphi.Phi) -> list[tuple[str, Any]]:
    """(guess, its result or the ValueError that refuses it) of all guesses. Other exceptions are raised."""
    noise = np.random.default_rng(0)
    samples = noise.normal(0, 0.1, 16000).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = pil.fromarray(noise.integers(0, 256, (40, 60, 3), np.uint8))
        soundfile.write(folder / "clip.wav", samples, 16000)
        names = {"phi": phi, "polyphi": polyphi, "np": np, "torch": torch, "weather": weather}
        names |= {"form": FORM, "City": City}
        names |= {"picture": picture, "samples": samples, "folder": folder}
        names["clip"] = str(folder / "clip.wav")
        results: list[tuple[str, Any]] = []
        for guess in GUESSES.strip().splitlines():
            try:
                results.append((guess, eval(guess, names)))
            except ValueError as refusal:
                results.append((guess, refusal))
    return results


def main(model: str) -> None:
    table = Table("guess", "outcome", show_lines=True)
    for guess, result in outcomes(polyphi.load(model)):
        refused = "refused: " if isinstance(result, ValueError) else ""
        text = str(result) if refused else repr(result)
        table.add_row(guess, refused + (text if len(text) <= 200 else f"{text[:200]} ..."))
    Console().print(table, markup=False)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "nano")
