"""The child process: values, errors, a crash, no answer."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from polyphi.devices import placement, precision
from polyphi.doctor import probe, published
from polyphi.doctor.published import Fit


def test_a_crash_leaves_the_facts_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text("import os\nos.kill(os.getpid(), 4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("json", "no_such_package", "crashing", "csv")
    result = probe.run(phases={name: partial(probe.import_package, name) for name in names})
    assert result.facts == {"json": None}
    assert result.errors.keys() == {"no_such_package", "crashing"}
    assert "SIGILL" in result.errors["crashing"]


def test_a_child_without_an_answer_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeping.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = probe.run(limit=0.1, phases={"sleeping": partial(probe.import_package, "sleeping")})
    assert "0 s" in result.errors["sleeping"] and not result.facts


def test_models_are_fitted_to_the_cpu_and_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(device: torch.device, free: int) -> Iterator[Fit]:
        yield Fit("m", str(device), None, "bfloat16", 4, 8, free, 2048, 1)

    monkeypatch.setattr(published, "fits", fits)
    gpus = [{"device": f"cuda:{index}", "free": 100} for index in range(2)]
    rows = probe._models({"memory": {"free": 10, "gpus": gpus}})
    assert [(row["device"], row["free"]) for row in rows] == [("cpu", 10), ("cuda:0", 100)]


@pytest.mark.parametrize(
    ("chosen", "reason"), [(None, "as they are stored"), (torch.float32, "this CPU is old")]
)
def test_the_reason_for_a_dtype_is_that_of_the_choice(
    chosen: torch.dtype | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our kernels multiply bfloat16 weights also on a CPU without instructions for them."""
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(precision, "missing", lambda dtype: "this CPU is old")
    monkeypatch.setattr(placement, "choose_dtype", lambda *_: chosen)
    facts = probe._precision({})
    assert facts["reason"] == reason and facts["training_reason"] == "this CPU is old"
