"""One file extends uvicorn's protocols, and what it uses of them exists: a version that renames a part fails here."""

import ast
import inspect
from pathlib import Path

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.websockets import websockets_sansio_impl

from polyphi.serve.http.connection import HttpConnection, WebSocketConnection

SERVE = Path(__file__).parents[2] / "polyphi" / "serve"
OWN = {"connection", "_settings", "_in_headers", "_complete", "_ended", "_body_bytes"}
OWN |= {"_other_bytes", "_refuse", "_upgraded"}
"""Names that only the subclasses have."""


def names_of(module: object) -> set[str]:
    """The methods of uvicorn's classes, and the attributes that they set."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):  # type: ignore[arg-type]
        if isinstance(node, ast.ClassDef):
            names |= {
                part.name
                for part in node.body
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def test_only_one_file_knows_the_protocols() -> None:
    importers = {
        path.name for path in SERVE.rglob("*.py") if "uvicorn.protocols" in path.read_text()
    }
    assert importers == {"connection.py"}


def test_what_is_used_of_the_protocols_exists() -> None:
    for own, module in (
        (HttpConnection, httptools_impl),
        (WebSocketConnection, websockets_sansio_impl),
    ):
        theirs = names_of(module)
        tree = ast.parse(inspect.getsource(own))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            if ast.unparse(node.value) in ("self", "super()", "self.cycle"):
                assert node.attr in theirs | OWN, f"{own.__name__}: {node.attr}"
