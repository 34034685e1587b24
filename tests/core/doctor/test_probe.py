"""The child process: values, errors, a crash, no answer."""

from collections.abc import Iterator
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
    phases: list[str] = []
    result = probe.run(phases.append, phases={name: probe.Import(name) for name in names})
    assert result.facts == {"json": "2.0.9"}
    assert result.errors.keys() == {"no_such_package", "crashing"}
    assert "SIGILL" in result.errors["crashing"]
    assert phases == [*names[:3]]


def test_a_child_without_an_answer_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeping.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = probe.run(limit=0.1, phases={"sleeping": probe.Import("sleeping")})
    assert "0 s" in result.errors["sleeping"] and not result.facts


@pytest.mark.parametrize(("share", "speeds"), [(1.0, [2.5, 10.0]), (0.3, [None, None])])
def test_tokens_per_second_are_estimated_from_undisturbed_rates(
    share: float, speeds: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(device: torch.device, free: int) -> Iterator[Fit]:
        for quant, size in ((None, 8), ("int4-all", 2)):
            name = str(device)
            yield Fit("m", name, quant, "bfloat16", 4, size, free, 2048, 4096, 1, size)

    monkeypatch.setattr(published, "fits", fits)
    rates = {"cpu_share": share, "decoding": {"bf16": 20.0, "int8": 20.0, "int4": 20.0}}
    gpu = {"device": "cuda:0", "free": 100}
    facts = {"memory": {"free": 10, "gpus": [gpu]}, "rates": rates}
    rows = probe._models(facts)
    assert [row["tokens_per_second"] for row in rows] == [*speeds, None, None]
    assert [row["free"] for row in rows] == [10, 10, 100, 100]


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
