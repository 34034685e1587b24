"""A skip for a reason that isn't listed makes a session fail, in one process and with pytest-xdist alike."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import allowed_skips
from tests.fixtures.processes import completed

CONFTEST = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(Path(allowed_skips.__file__).parents[1])!r})
from tests import allowed_skips

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        list_ = Path(__file__).with_name("list.toml")
        config.pluginmanager.register(allowed_skips.SkipCheck(list_))
"""
LIST = """
[[skip]]
reason = "no (cat|dog) here"
why = "Animals are optional."
machine = "any"

[[skip]]
reason = "no bird here"
why = "Birds are optional elsewhere."
machine = "Windows"
"""
ALLOWED = """
import pytest

@pytest.mark.skip(reason="no cat here")
def test_cat(): ...

@pytest.mark.xfail(reason="no known reason")
def test_known_bug():
    raise ValueError

def test_dog():
    pytest.skip("no dog here")
"""
REFUSED = """
import pytest

@pytest.mark.parametrize("colour", ["black", "white"])
def test_cow(colour):
    if colour == "black":
        pytest.skip("no cow here")

@pytest.fixture
def bird():
    pytest.skip("no bird here")

def test_bird(bird): ...

def test_nearly():
    pytest.skip("no cat here, or so it seems")
"""
MODULE = """
import pytest

pytest.importorskip("package_that_nobody_wrote")
"""


def session(folder: Path, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
    """Run pytest over some files with another list. Of installed plugins only xdist is loaded, to save seconds."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "list.toml").write_text(LIST)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    options = ("-q", "-p", "xdist", "-p", "no:cacheprovider", "--rootdir", str(folder), *arguments)
    command = (sys.executable, "-m", "pytest", *options)
    return completed(*command, cwd=folder, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def test_listed_reasons_pass(tmp_path: Path) -> None:
    result = session(tmp_path, allowed=ALLOWED)
    assert result.returncode == 0, result.stdout
    assert "2 skipped, 1 xfailed" in result.stdout and "list.toml" not in result.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_other_reasons_fail_and_are_named(tmp_path: Path, workers: str) -> None:
    result = session(tmp_path, "-n", workers, allowed=ALLOWED, refused=REFUSED, module=MODULE)
    assert result.returncode == 1, result.stdout
    assert "1 passed, 6 skipped, 1 xfailed" in result.stdout
    report = result.stdout.partition("skips that are not allowed")[2]
    for line in (
        "test_refused.py::test_cow[black]: no cow here",
        "test_refused.py::test_bird: no bird here",
        "test_refused.py::test_nearly: no cat here, or so it seems",
        "test_module.py: could not import 'package_that_nobody_wrote'",
        f"4 tests or modules were skipped for a reason that {tmp_path / 'list.toml'}",
    ):
        assert line in report, result.stdout
    assert "test_allowed" not in report


def test_a_session_of_a_refused_module_alone_fails(tmp_path: Path) -> None:
    """pytest's own exit status would be 5, no tests collected."""
    assert session(tmp_path, module=MODULE).returncode == 1


def test_the_list_names_known_machines(tmp_path: Path) -> None:
    assert allowed_skips.read(allowed_skips.ALLOWED)
    (tmp_path / "list.toml").write_text(LIST.replace("Windows", "Mars"))
    with pytest.raises(ValueError, match="Mars"):
        allowed_skips.read(tmp_path / "list.toml")
