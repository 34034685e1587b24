"""README and docs: links and anchors lead somewhere, Python compiles, and command lines parse."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import markdown
import pytest
from command_line import options, parsed, subcommands
from cyclopts import CycloptsError

from polyphi.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^ *```$")
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the code blocks."""
    for _, language, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        yield language, text


def prose(path: Path) -> str:
    return BLOCK.sub("", path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """The ids of headings, as the site makes them."""
    converter = markdown.Markdown(extensions=["toc", "pymdownx.superfences"])
    html = converter.convert(path.read_text(encoding="utf-8"))
    return set(re.findall(r'<h\d id="([^"]+)"', html))


@page
def test_links_and_anchors_exist(page: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    for target in re.findall(r"\]\(((?!https?:|mailto:)[^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which isn't there"
        inside = file.is_relative_to(DOCS) or not page.is_relative_to(DOCS)
        assert inside, f"{page.name} links to {target}, which the site doesn't have"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}: no such heading"


@page
def test_python_compiles(page: Path) -> None:
    for language, text in blocks(page):
        if language == "python":
            compile(text, str(page), "exec")


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of each `polyphi` command of a shell block, also after variables, torchrun and in pipes."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "polyphi" in line else []
        for part in _split(words):
            while part and re.match(r"\w+=", part[0]):
                del part[0]
            if "polyphi.cli" in part and part[part.index("polyphi.cli") - 1] == "-m":
                yield part[part.index("polyphi.cli") + 1 :]
            elif part and part[0] in ("polyphi", ".venv/bin/polyphi"):
                yield part[1:]


def _split(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("|", "&&", ";", "&", ">", "<"):
            yield part
            part = [] if word not in "<>" else ["file"]
        else:
            part.append(word)
    yield part


@page
def test_command_lines_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYPHI_API_KEY", raising=False)
    for language, text in blocks(page):
        if language in ("", "bash", "sh", "shell", "console"):
            for arguments in command_lines(text):
                try:
                    parsed(arguments)
                except (CycloptsError, ValueError) as error:
                    raise AssertionError(
                        f"{page.name}: polyphi {shlex.join(arguments)}: {error}"
                    ) from error


@page
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    for code in re.findall(r"`polyphi ([^`]+)`", prose(page)):
        words = code.split()
        if not re.fullmatch("[a-z][a-z-]*", words[0]):
            continue  # such as `polyphi COMMAND` and `polyphi --help`
        assert words[0] in app, f"{page.name}: polyphi {words[0]}"
        command = app[words[0]]
        known = {o for c in (command, *subcommands(command).values()) for o in options(c)}
        for word in words[1:]:
            name = word.partition("=")[0]
            if name.startswith("--") and words[0] != "bench":
                assert name in {*known, "--help"}, f"{page.name}: polyphi {code}"
