"""The library of kernels: what is said where it is missing."""

import subprocess
import sys
from pathlib import Path

from polyphi.kernels import native


def test_without_a_library_it_says_so(tmp_path: Path) -> None:
    """As where there was no compiler: the package works, and tells why it is slower."""
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from kernels.native import missing, path
print(path(), missing(), sep="|")
"""
    (tmp_path / "kernels").mkdir()
    source = Path(native.__file__).read_text()
    (tmp_path / "kernels" / "native.py").write_text(source)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == (
        "none|they weren't built: there was no C++ compiler when polyphi was installed\n"
    )
