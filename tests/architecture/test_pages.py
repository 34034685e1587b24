"""README and docs: links and anchors lead somewhere, Python compiles, and command lines parse."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import markdown
import pytest
from cyclopts import CycloptsError

from polyphi.cli import app
from tests.fixtures.command_line import options, parsed, subcommands

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^ *```$")


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


def test_links_and_anchors_exist() -> None:
    """Those of the site's pages lead to pages of the site."""
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(
            r"\]\(((?!https?:|mailto:)[^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(page))
        )
    ]
    assert not [(page.name, target) for page, target in links if not leads_somewhere(page, target)]


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or (page.is_relative_to(DOCS) and not file.is_relative_to(DOCS)):
        return False
    return not anchor or file.suffix != ".md" or anchor in anchors(file)


def test_python_compiles() -> None:
    for page in PAGES:
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


def test_command_lines_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYPHI_API_KEY", raising=False)
    faults = []
    for page in PAGES:
        for language, text in blocks(page):
            shell = language in ("", "bash", "sh", "shell", "console")
            for arguments in command_lines(text) if shell else ():
                try:
                    parsed(arguments)
                except (CycloptsError, ValueError) as error:
                    faults.append(f"{page.name}: polyphi {shlex.join(arguments)}: {error}")
    assert not faults


def test_commands_and_options_in_the_text_exist() -> None:
    codes = [
        (page.name, code)
        for page in PAGES
        for code in re.findall(r"`polyphi ([^`]+)`", prose(page))
    ]
    assert not [f"{name}: polyphi {code}" for name, code in codes if not exists(code.split())]


def exists(words: list[str]) -> bool:
    """Whether a command has the options with which a text names it."""
    if not re.fullmatch("[a-z][a-z-]*", words[0]):
        return True  # such as `polyphi COMMAND` and `polyphi --help`
    if words[0] not in app:
        return False
    command = app[words[0]]
    known = {o for c in (command, *subcommands(command).values()) for o in options(c)}
    named = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
    return words[0] == "bench" or named <= {*known, "--help"}
