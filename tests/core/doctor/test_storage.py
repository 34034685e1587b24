"""Caches and disk space under simulated conditions."""

from pathlib import Path

import pytest

from polyphi.doctor import storage
from polyphi.doctor.storage import Folder
from polyphi.hub.cache import StoredModel

GB = 10**9


def test_our_cache_and_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path / "absent" / "polyphi"))
    ours, hub = storage.folders()
    assert (ours.name, ours.bytes, ours.writable, hub.name) == ("polyphi", 0, True, "Hub")
    ours.path.mkdir(parents=True)
    (ours.path / "a").write_bytes(bytes(1000))
    (ours.path / "b").symlink_to("a")
    assert 1000 <= storage.folders()[0].bytes < 1100


@pytest.mark.parametrize(
    ("folder", "state"),
    [
        (Folder("Hub", Path("/x"), 0, 9 * GB, True), "ok"),
        (Folder("Hub", Path("/x"), 0, 7 * GB, True), "missing"),
        (Folder("polyphi", Path("/x"), 0, 7 * GB, True), "ok"),
        (Folder("polyphi", Path("/x"), 0, 9 * GB, False), "wrong"),
    ],
)
def test_states_of_folders(folder: Folder, state: str) -> None:
    ((_, result),) = storage.cache_results([folder], [], [{"parameters": 4 * GB}])
    assert ("ok" if isinstance(result, str) else result.state) == state
    assert isinstance(result, str) or not result.fatal


def test_an_interrupted_download_is_resumed_by_its_cure() -> None:
    rows = [
        StoredModel("o/a", "0" * 40, None, Path("/a"), GB, 0.0, None, name="o/a"),
        StoredModel("o/b", "0" * 40, None, Path("/b"), GB, 0.0, "interrupted", name="o/b"),
        StoredModel("o/a", "0" * 40, "int4", Path("/c"), GB, 0.0, "no weights", name="o/a:int4"),
    ]
    complete, *incomplete = storage.model_results(rows)
    assert complete == ("o/a", "1.0 GB")
    assert [(name, result[0], result[2]) for name, result in incomplete] == [
        ("o/b", "missing", "polyphi pull o/b"),
        ("o/a:int4", "missing", "polyphi pull o/a --quant int4"),
    ]
