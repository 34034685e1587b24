"""The documentation builds as a site: every page, link, anchor and docstring that it names exists."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    build = subprocess.run(
        [
            Path(sys.executable).with_name("zensical"),
            "build",
            "--strict",
            "--config-file",
            "mkdocs.yml",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    pages = {page.parent.name for page in (tmp_path / "site").rglob("index.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= pages
    assert 'id="polyphi.api.Phi.generate"' in (tmp_path / "site/api/index.html").read_text()
