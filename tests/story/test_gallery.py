"""The gallery of examples has each of them, with a command that uses it."""

import re
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
GALLERY = (EXAMPLES / "README.md").read_text()
SECTIONS = dict(re.findall(r"(?ms)^### `([^`]+)`\n(.*?)(?=^##|\Z)", GALLERY))


COMMANDS = {name for name in SECTIONS if name.startswith("polyphi ")}
"""Examples without a file."""


def test_every_example_is_in_the_gallery() -> None:
    files = {f.name for f in EXAMPLES.iterdir() if f.is_file() and not f.name.startswith(".")}
    folders = {f.parent.name for f in EXAMPLES.glob("*/*.py")}
    assert set(SECTIONS) - COMMANDS == (files | folders) - {"README.md"}


def test_every_example_has_its_command_and_an_output_or_the_reason_for_none() -> None:
    for name, text in SECTIONS.items():
        command, *outputs = re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
        assert (name if name in COMMANDS else f"examples/{name}") in command
        assert outputs or "**Not run here**" in text, f"{name} shows no output"


def test_the_links_of_the_gallery_exist() -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", GALLERY):
        assert (EXAMPLES / link).exists(), link
