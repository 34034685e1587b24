"""The page as it is served, without a browser: its policy, labels and colours, and that it contacts no other host."""

import base64
import gzip
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from polyphi.media.file_types import MIME_ARCHIVES, PROMISES
from polyphi.serve.page import page

TEXT = page.PAGE.decode()
LOADING = page.LOADING.decode()
SCRIPT = "\n".join((page.UI / name).read_text() for name in page.SCRIPTS)
"""The page's own scripts, without the libraries."""
VENDOR = page.UI / "vendor"
STYLE = (page.UI / "style.css").read_text()
PAGES = {"chat": (page.PAGE, page.HEADERS), "loading": (page.LOADING, page.LOADING_HEADERS)}
VOID = {"meta", "link", "input", "img", "br", "hr", "path", "circle", "rect", "use"}


class Outline(HTMLParser):
    """Every element with its attributes, the text inside it, and the labels around it."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(TEXT)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        around = [name for name, _ in self.open]
        text: list[str] = []
        self.elements.append((tag, dict(attributes) | {"in": " ".join(around)}, text))
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)


OUTLINE = Outline().elements


def attributes(tag: str) -> list[dict[str, str | None]]:
    return [values for name, values, _ in OUTLINE if name == tag]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_names_the_one_script_and_the_one_style_by_hash(name: str, tag: str) -> None:
    content, headers = PAGES[name]
    inside = re.findall(rf"(?s)<{tag}[^>]*>(.*?)</{tag}>", content.decode())
    assert len(inside) == 1 and inside[0]
    digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
    allowed = policy(headers)[f"{tag}-src"].split()
    assert f"'sha256-{digest}'" in allowed
    assert set(allowed) - {f"'sha256-{digest}'"} <= {"blob:"}
    assert "unsafe" not in headers["Content-Security-Policy"]


def policy(headers: dict[str, str]) -> dict[str, str]:
    parts = headers["Content-Security-Policy"].split(";")
    return dict(part.strip().split(" ", 1) for part in parts)


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_shuts_everything_else(name: str) -> None:
    rules = policy(PAGES[name][1])
    closed = ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types")
    assert {rules[name] for name in closed} == {"'none'"}
    assert rules["connect-src"] == "'self'"
    assert rules["img-src"] == rules["media-src"] == "data: blob:"
    assert rules["require-trusted-types-for"] == "'script'"


def test_the_page_names_no_other_place() -> None:
    addresses = r"https?://[\w.-]+[\w./-]*"
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}
    own = (SCRIPT, STYLE, (page.UI / "index.html").read_text(), LOADING)
    assert set(re.findall(addresses, " ".join(own))) <= namespaces
    # What the libraries name in comments and messages, none of it to fetch.
    named = {
        "http://www.w3.org/1999/xhtml",
        "https://github.com/babel/babel/blob/main/packages/babel-helpers/LICENSE",
        "https://github.com/highlightjs/highlight.js/issues/2277",
        "https://github.com/highlightjs/highlight.js/wiki/security",
    }
    assert set(re.findall(addresses, TEXT)) <= namespaces | named
    assert not re.search(r"url\(|@import", STYLE)
    for tag, values, _ in OUTLINE:
        for name in ("src", "href", "action", "srcset", "data"):
            value = values.get(name) or "#"
            assert value.startswith(("#", "data:image/svg+xml")), f"{tag} has {name}={value}"


def test_nothing_in_the_page_needs_what_the_policy_forbids() -> None:
    for tag, values, _ in OUTLINE:
        assert "style" not in values and not any(name.startswith("on") for name in values), tag
    assert "</script" not in SCRIPT and "<!--" not in SCRIPT and "</style" not in STYLE


def test_s26_text_is_never_parsed_as_html() -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    runs = r"\beval\(|new Function|setTimeout\(\s*[\"'`]|createElement\(.script|javascript:"
    assert not re.search(f"{sinks}|{runs}|setHTML|importScripts", SCRIPT)


def test_the_page_refuses_the_names_that_the_server_refuses() -> None:
    (pattern,) = re.findall(r"(?s)BINARY_NAME =\s*/(.*?)/i;", SCRIPT)
    suffixes = PROMISES.keys() - set(MIME_ARCHIVES)
    assert all(re.search(pattern, f"name{suffix}") for suffix in suffixes)
    assert not re.search(pattern, "name.svg") and not re.search(pattern, "name.txt")


def test_every_file_is_served() -> None:
    assert {path.name for path in page.UI.glob("*.js")} == {*page.SCRIPTS, page.LOADING_SCRIPT}
    assert {path.suffix for path in page.UI.iterdir() if path.is_file()} == {".js", ".css", ".html"}


def test_the_libraries_are_the_pinned_files() -> None:
    """Each file as its npm package has it, and each licence named in NOTICE."""
    notice = (Path(__file__).parents[4] / "NOTICE").read_text()
    files = {"vendor.json"}
    for library in page.LIBRARIES:
        script = VENDOR / Path(library["path"]).name
        hashes = {script.name: library["sha256"], **library["licence_files"]}
        for name, digest in hashes.items():
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
        files |= hashes.keys()
        assert f"{library['package']} {library['version']}" in notice
        assert library["licence"] in notice
        assert script.read_text() in TEXT
    assert {path.name for path in VENDOR.iterdir()} == files


def test_the_compressed_page_is_the_page() -> None:
    assert gzip.decompress(page.COMPRESSED) == page.PAGE
    assert len(page.COMPRESSED) < 250_000


def test_what_the_scripts_look_for_is_there() -> None:
    ids = [values["id"] for _, values, _ in OUTLINE if "id" in values]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r"\$\(\"([\w-]+)\"\)", SCRIPT))
    for name in ("chat", "speech"):
        referenced |= {
            part.replace("${name}", name) for part in re.findall(r"\$\(`(.+?)`\)", SCRIPT)
        }
    referenced = {name for name in referenced if "${" not in name}
    assert referenced and referenced <= set(ids)
    icons = set(re.findall(r"icon(?:Button)?\(\s*\"([\w-]+)\"", SCRIPT))
    icons |= set(re.findall(r"idea\(\"(\w+)\"", SCRIPT))
    assert icons and {f"i-{name}" for name in icons} <= set(ids)
    for values in attributes("use"):
        assert (values["href"] or "")[1:] in ids


def test_everything_that_can_be_used_has_a_name() -> None:
    labelled = {values.get("for") for values in attributes("label")}
    for tag, values, text in OUTLINE:
        named = values.get("aria-label") or values.get("aria-labelledby") or values.get("title")
        if tag == "button":
            assert named or "".join(text).strip(), f"a button without a name: {values}"
        elif tag in ("input", "select", "textarea"):
            around = "label" in (values["in"] or "").split()
            assert named or around or values.get("id") in labelled, f"no label: {values}"
        elif tag in ("dialog", "nav", "aside", "audio", "main") or values.get("role") == "group":
            assert named, f"{tag} without a name"
        elif tag == "img":
            assert "alt" in values


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    "pair",
    [
        *(f"{ink} {paper}" for ink in ("ink", "quiet") for paper in ("paper", "side", "raised", "soft")),
        "accent paper",
        "accent raised",
        "on-accent accent",
        "wrong wrong-soft",
    ],
)  # fmt: skip
def test_text_stands_out_from_what_it_is_on(pair: str, theme: int) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 for text of the usual size."""
    colours = dict(
        (name, (light, dark)[theme])
        for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLE)
    )
    one, other = sorted((luminance(colours[name]) for name in pair.split()), reverse=True)
    assert (one + 0.05) / (other + 0.05) >= 4.5
