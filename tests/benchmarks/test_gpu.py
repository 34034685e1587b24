"""The GPU check at its tiny size on a CPU: every check runs and passes, errors fail their own line only, and results
that are wrong fail."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polyphi.engine.graphs import DecodeGraphs

CPU = torch.device("cpu")
CHECKS = (
    "logits",
    "packed",
    "graphs",
    "attention",
    "base",
    "training",
    "block",
    "decode",
    "prefill",
    "base_step",
    "decode_int4",
)


@pytest.fixture
def gpu(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("gpu")


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_passes(gpu, check: str) -> None:
    lines = list(gpu.CHECKS[check](CPU, True))
    assert {line.verdict for line in lines} <= {"pass", "no bound", "skipped"}, lines
    if check in CHECKS[:6]:
        assert any(line.verdict == "pass" for line in lines)


def test_every_check_is_tested(gpu) -> None:
    assert tuple(gpu.CHECKS) == CHECKS


def test_attention_to_the_future_fails(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gpu.gpu_parity.packed_attention
    monkeypatch.setattr(
        gpu.gpu_parity,
        "packed_attention",
        lambda q, k, v, bounds: packed(q.flip(0), k.flip(0), v.flip(0), bounds).flip(0),
    )
    verdicts = {line.work: line.verdict for line in gpu.CHECKS["attention"](CPU, True)}
    assert verdicts["attention, output"] == verdicts["attention, gradient of keys"] == "fail"
    assert verdicts["attention, cached tokens"] == "pass"


def test_a_recorded_step_that_misses_a_token_fails(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = DecodeGraphs._fill

    def without_first(self: DecodeGraphs, step, batch, parts) -> None:
        fill(self, step, batch, parts)
        step.mask[: len(parts), 0] = False

    monkeypatch.setattr(DecodeGraphs, "_fill", without_first)
    (line,) = gpu.CHECKS["graphs"](CPU, True)
    assert line.verdict == "fail"


DIES = """
import sys, time
print("noise")
print('>{"work": "first", "value": 1.0, "bound": 2.0}', flush=True)
if sys.argv[2] == "graphs":
    time.sleep(60)
sys.exit("out of memory")
"""


@pytest.mark.parametrize(
    ("check", "limit", "message"), [("logits", 60, "out of memory"), ("graphs", 2, "2 s")]
)
def test_a_check_that_dies_keeps_its_lines(
    gpu, check: str, limit: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    monkeypatch.setattr(gpu, "__file__", str(script))
    first, last = gpu.run(check, True, limit)
    assert (first.work, first.verdict) == ("first", "pass")
    assert (last.work, last.verdict) == (check, "fail") and message in last.failure


def test_all_lines_are_printed_and_a_failure_is_the_status(
    gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {
        "logits": gpu.Line("a", 1.0, "", 2.0),
        "packed": gpu.Line("b", 1.0, "x/s", 2.0, least=True, note="note"),
        "block": gpu.Line("c", skip="[reason]"),
        "decode": gpu.Line("d", 3.0),
        "prefill": gpu.Line("e", float("inf"), "", float("inf")),
    }
    monkeypatch.setattr(gpu, "run", lambda check, tiny, limit: [lines[check]])
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--tiny", "--json", "--only", *lines])
    rows = json.loads(capsys.readouterr().out)
    verdicts = ["pass", "fail", "skipped", "no bound", "fail"]
    assert [row["verdict"] for row in rows] == verdicts and ended.value.code == 1
    assert rows[2]["value"] is None
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--tiny", "--only", "logits", "block"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "[reason]" in printed and torch.__version__ in printed
