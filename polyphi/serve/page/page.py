"""The chat page, and the page while the model loads: files of `ui/` as HTML documents, and their security headers.

>>> HEADERS["Content-Security-Policy"][:19]
"default-src 'none';"

The policy allows one script and one style by their hashes, so that nothing else on the page can run, and connections to
this server only. With `require-trusted-types-for` the browser refuses to parse text as HTML.

The script begins with the libraries of `ui/vendor`: unmodified files of npm packages, pinned in `vendor.json` there. To
update one, run `npm pack NAME@VERSION`, copy the file at `path` and the licence out of the archive, and change
`vendor.json` and NOTICE; test_page_static.py checks them, test_page.py tests the page in Chromium.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

UI = Path(__file__).parent / "ui"
LIBRARIES = json.loads((UI / "vendor" / "vendor.json").read_text(encoding="utf-8"))
"""Package, version, licence, path within the package, and SHA-256 of each library and its licence files."""
SCRIPTS = (
    "dom.js",
    "markdown.js",
    "server.js",
    "store.js",
    "media.js",
    "settings.js",
    "chat.js",
    "history.js",
    "transcribe.js",
    "live.js",
    "main.js",
)
"""The chat page's own scripts in their order; they follow the libraries, and all form one module."""
LOADING_SCRIPT = "loading.js"


def _source(text: str) -> str:
    """The CSP source of an inline script or style: the hash of the text between its tags."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _document(name: str, script: str) -> tuple[bytes, dict[str, str]]:
    """A file of `ui/` with the style and a script inside it, as UTF-8, and its headers."""
    style = (UI / "style.css").read_text(encoding="utf-8")
    assert not re.search(r"(?i)</?script[\s/>]", script), (
        "a script tag inside the script would end it"
    )
    page = (UI / name).read_text(encoding="utf-8")
    for tag, filled in (
        ("<style></style>", f"<style>{style}</style>"),
        ('<script type="module"></script>', f'<script type="module">{script}</script>'),
    ):
        assert page.count(tag) == 1, f"{name} needs one {tag}"
        page = page.replace(tag, filled)
    policy = {
        "default-src": "'none'",
        # Recording needs an AudioWorklet, whose module the page can only load from a blob: URL.
        "script-src": f"{_source(script)} blob:",
        "style-src": _source(style),
        "img-src": "data: blob:",
        "media-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return page.encode(), {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
    }


def _text(paths: Iterable[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


PAGE, HEADERS = _document(
    "index.html",
    _text(
        [
            *(UI / "vendor" / Path(library["path"]).name for library in LIBRARIES),
            *(UI / name for name in SCRIPTS),
        ]
    ),
)
"""The chat page and its HTTP headers."""
COMPRESSED = gzip.compress(PAGE, mtime=0)
LOADING, LOADING_HEADERS = _document("loading.html", _text([UI / LOADING_SCRIPT]))
"""The page while the model loads: its script asks for the progress, and then for the chat page."""
