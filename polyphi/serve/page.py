"""The chat page: the files of `ui/` as one HTML document, and its security headers.

>>> HEADERS["Content-Security-Policy"][:19]
"default-src 'none';"

The policy allows one script and one style by their hashes, so that nothing else on the page can run, and connections to
this server only. With `require-trusted-types-for` the browser refuses to parse text as HTML.

The script begins with the libraries of `ui/vendor`: unmodified files of npm packages, pinned in `vendor.json` there. To
update one, run `npm pack NAME@VERSION`, copy the file at `path` and the licence out of the archive, and change
`vendor.json` and NOTICE; tests/core/serve/test_page_static.py checks them, test_page.py tests the page in Chromium.
"""

import base64
import gzip
import hashlib
import json
import re
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
"""The page's own scripts in their order; they follow the libraries, and all form one module."""


def _source(text: str) -> str:
    """The CSP source of an inline script or style: the hash of the text between its tags."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _page() -> tuple[bytes, str]:
    style = (UI / "style.css").read_text(encoding="utf-8")
    libraries = [UI / "vendor" / Path(library["path"]).name for library in LIBRARIES]
    scripts = [*libraries, *(UI / name for name in SCRIPTS)]
    script = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    assert not re.search(r"(?i)</?script[\s/>]", script), (
        "a script tag inside the script would end it"
    )
    page = (UI / "index.html").read_text(encoding="utf-8")
    for tag, filled in (
        ("<style></style>", f"<style>{style}</style>"),
        ('<script type="module"></script>', f'<script type="module">{script}</script>'),
    ):
        assert page.count(tag) == 1, f"index.html needs one {tag}"
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
    return page.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


PAGE, _policy = _page()
"""The document, UTF-8."""
COMPRESSED = gzip.compress(PAGE, mtime=0)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": _policy,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
