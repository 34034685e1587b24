"""What a CPU with AVX2 and nothing newer computes, on any x86 CPU: environment variables (avx2.env) make torch, MKL,
oneDNN and polyphi's kernels use no newer instructions. `make test-avx2` runs whole packages so."""

import sys
from pathlib import Path

import pytest

from tests import allowed_skips
from tests.core.train import small
from tests.fixtures.processes import ROOT, completed

pytestmark = pytest.mark.skipif(
    allowed_skips.MACHINES["no AVX2"](), reason="AVX2 is emulated on CPUs that have it"
)
EMULATION = {**allowed_skips.emulation(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TESTS = (
    "tests/core/kernels/test_bf16.py",
    "tests/core/kernels/test_linear.py::test_the_largest_sums_fit",
    "tests/core/kernels/test_linear.py::test_paths_agree",
    "tests/core/quantization/test_int8_encoder.py",
    "tests/core/quantization/test_quantize.py::test_a_kernel_adds_integers_or_is_passed_over",
    "tests/core/quantization/test_quantize.py::test_the_chosen_kernel_adds_integers",
    "tests/core/quantization/test_quantize.py::test_rotated_weights_are_close",
    "tests/core/quantization/test_quantize.py::test_four_bits_of_torch_are_close_at_any_number_of_tokens",
    "tests/core/quantization/test_quantize.py::test_four_bits_are_unpacked_only_in_the_expected_layout",
)
PROBE = """
import torch
from polyphi import kernels
from polyphi.kernels import bf16
from polyphi.quantization.integer_weights import _kernel
print(torch.backends.cpu.get_cpu_capability(), _kernel("cpu").__name__, kernels.path(), bf16.needed(), sep=",")
"""


@pytest.mark.long
def test_tests_of_kernels_pass() -> None:
    """Only the plugin of hypothesis is loaded: others import for seconds."""
    options = ("-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin")
    command = (sys.executable, "-m", "pytest", *options, *TESTS)
    result = completed(*command, **EMULATION, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert result.returncode == 0, result.stdout


def test_nothing_newer_than_avx2_is_used() -> None:
    result = completed(sys.executable, "-c", PROBE, **EMULATION)
    assert result.stdout.strip().split(",") == ["AVX2", "Plain", "AVX2", "True"]


@pytest.mark.long
def test_training_makes_the_same_losses(tmp_path: Path) -> None:
    """Two steps with every modality. Sums in another order change the last digits."""
    data = small.write_corpora(tmp_path / "data")
    command = (str(ROOT / "tests/core/train/small.py"), str(tmp_path / "avx2"), str(data))
    environment = {**EMULATION, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/core'}"}
    result = completed(sys.executable, *command, "--steps", "2", **environment)
    assert result.returncode == 0, result.stdout
    small.run(tmp_path / "here", data, budget=small.replace(small.BUDGET, steps=2))
    emulated, here = (small.trajectory(tmp_path / name) for name in ("avx2", "here"))
    assert len(here) == 2 and [r[:2] for r in emulated] == [r[:2] for r in here]
    assert [r[2:4] for r in emulated] == [pytest.approx(r[2:4], rel=1e-4) for r in here]
