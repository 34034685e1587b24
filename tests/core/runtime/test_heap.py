"""Free memory is returned to the system with glibc."""

import ctypes
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from polyphi.runtime.heap import give_back
from polyphi.train.freeze import drop_pages


def test_free_memory_is_returned() -> None:
    """The last block keeps the heap from shrinking on its own."""
    blocks = [bytearray(60_000) for _ in range(2_000)]
    full = psutil.Process().memory_info().rss
    last = blocks.pop()
    del blocks
    give_back()
    after = psutil.Process().memory_info().rss
    assert last is not None
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        assert full - after > 80_000_000


APART = """
import ctypes
import subprocess
import sys
from polyphi.runtime.heap import keep_large_blocks_apart

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if {apart}:
    keep_large_blocks_apart()
for _ in range(3):
    bytearray(20 << 20)  # freed at once: glibc now takes as much from the heap
before = libc.mallinfo2().hblkhd
block = bytearray(10 << 20)
print(libc.mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone has mallinfo2")
@pytest.mark.parametrize("apart", [True, False])
def test_large_blocks_are_mapped_one_by_one(apart: bool) -> None:
    code = APART.replace("{apart}", str(apart))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(ran.stdout) >= 10 << 20) == apart


REUSED = """
import ctypes
from polyphi.runtime.heap import reuse_freed_blocks

def mapped():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

with reuse_freed_blocks():
    bytearray(100 << 20)
    print(mapped() > 100 << 10)
bytearray(100 << 20)
print(mapped() > 100 << 10)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone has mallinfo2")
def test_freed_blocks_stay_while_they_are_reused() -> None:
    code = [sys.executable, "-c", REUSED]
    assert subprocess.run(code, capture_output=True, text=True, check=True).stdout.split() == [
        "True",
        "False",
    ]


def resident_file_pages() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile:"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_pages_of_mapped_tensors_leave_memory_and_are_read_again(tmp_path: Path) -> None:
    values = torch.arange(4 << 20, dtype=torch.float32)
    save_file({"x": values}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        mapped = file.get_tensor("x")
    assert torch.equal(mapped, values)
    before = resident_file_pages()
    drop_pages([mapped, values])
    assert before - resident_file_pages() > mapped.nbytes * 0.9
    assert torch.equal(mapped, values)
    assert torch.equal(values, torch.arange(4 << 20, dtype=torch.float32))
