"""uvicorn's protocols are used through asyncio's callbacks alone, so that a new version of uvicorn changes nothing."""

import ast
import inspect
from asyncio import Protocol
from collections.abc import Iterator
from pathlib import Path

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.websockets import websockets_sansio_impl

SERVE = Path(__file__).parents[2] / "polyphi" / "serve"
CLASSES = {"HttpToolsProtocol", "WebSocketsSansIOProtocol", "RequestResponseCycle"}
CALLBACKS = {name for name in dir(Protocol) if not name.startswith("_")}


def protocol_attributes() -> set[str]:
    """The names of what uvicorn's protocols and their state hold."""
    names = {"server_state"}
    for module in (httptools_impl, websockets_sansio_impl):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ClassDef):
                names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names.add(node.attr)
    return names - CALLBACKS


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SERVE.rglob("*.py")):
        yield path.name, ast.parse(path.read_text())


def test_only_two_files_know_the_classes_and_none_extends_them() -> None:
    importers = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvicorn.proto"):
                importers.add(name)
                assert {alias.name for alias in node.names} <= CLASSES
            if isinstance(node, ast.ClassDef):
                assert not CLASSES & {ast.unparse(base).split(".")[-1] for base in node.bases}, name
    assert importers == {"connection.py", "run.py"}


def test_only_callbacks_of_asyncio_are_called() -> None:
    """`inner` is declared as an `asyncio.Protocol`, so mypy refuses all else; here the same of names."""
    used = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            assert node.attr != "server_state", name
            if isinstance(node.value, ast.Attribute) and node.value.attr == "inner":
                assert node.attr in CALLBACKS, f"{name}:{node.lineno}: inner.{node.attr}"
                used.add(node.attr)
    assert "data_received" in used


def test_no_name_of_their_state_is_written_to_another_object() -> None:
    """Such as `cycle.more_body = False`: an attribute that uvicorn's protocols have, of an object that isn't `self`."""
    names = protocol_attributes()
    assert {"cycle", "parser", "timeout_keep_alive_task", "queue", "frames"} <= names
    for name in ("http/connection.py", "run.py", "page/loading.py", "http/guard.py"):
        tree = ast.parse((SERVE / name).read_text())
        for node in ast.walk(tree):
            written = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if written and ast.unparse(node.value) != "self":
                assert node.attr not in names, f"{name}:{node.lineno}: {ast.unparse(node)}"
