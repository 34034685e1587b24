"""Hostile archives and files of curation's sources (S27)."""

import gzip
import hashlib
import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

import polyphi
import polyphi_eval
import polyphi_recipe
from polyphi_recipe.raw import packages as sources
from polyphi_recipe.raw import pages

MB = 1_000_000


def test_s27_an_archive_leads_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only archives that are unpacked are packages with a digest in our source; yet one that is forged stays inside
    its folder, links included."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("../out", "/abs/out", "a/../../out", "in/side"):
            archive.writestr(name, "x")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    target, digest = tmp_path / "inner" / "place", hashlib.sha256(wheel.getvalue()).hexdigest()
    target.mkdir(parents=True)

    def download(source: Any, partial: Path) -> Path:
        (partial / "x.whl").write_bytes(wheel.getvalue())
        return partial / "x.whl"

    monkeypatch.setattr(sources, "_download_wheel", download)
    sources._fill(sources.Package("x", "wheel", "", "", "", sha256=digest), target, tmp_path)
    outside = {p.name for p in tmp_path.rglob("*") if target not in p.parents} - {"inner", "place"}
    assert not outside
    assert not [p for p in target.rglob("*") if p.is_symlink()]
    assert (target / "in/side").read_text() == "x"
    forged = sources.Package("x", "wheel", "", "", "", sha256="0" * 64)
    with pytest.raises(sources.Unavailable, match="SHA-256"):
        sources._fill(forged, target, tmp_path)


def test_s27_what_grows_when_it_is_unpacked_is_cut_off(tmp_path: Path) -> None:
    """200 MB of zeros in 200 kB."""
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for _ in range(200):
            file.write(b"a" * MB)
    assert (tmp_path / "a.txt.gz").stat().st_size < MB
    reports: list[str] = []
    tracemalloc.start()
    documents = list(pages.read([tmp_path], source="s", licence="CC0-1.0", report=reports.append))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not documents and "at most 20,971,520 bytes" in reports[0]
    assert peak < 80 * MB


def test_s27_no_tar_is_ever_unpacked() -> None:
    """Shards are Parquet files with media in them. FLEURS's clips and WebDataset's rows are in tars, whose members are
    read, or counted, and never written anywhere."""
    packages = (polyphi, polyphi_eval, polyphi_recipe)
    paths = [path for package in packages for path in Path(package.__file__).parent.rglob("*.py")]
    uses = {path.name: text for path in paths if "tarfile" in (text := path.read_text())}
    assert set(uses) == {
        "fleurs.py",
        "row_counts.py",
        "sources.py",
        "webdataset.py",
    }  # one of them for its error
    for text in uses.values():
        assert "extractall" not in text and ".extract(" not in text
