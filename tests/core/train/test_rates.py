"""Default learning rates: they fall with the rank, and "auto" is for adapters of the model alone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from train.small import EVERYTHING

from polyphi.model.config import AdapterConfig
from polyphi.train.rates import MAX_RATE, default_rate, resolved

DOCS = Path(__file__).parents[3] / "docs" / "finetune.md"
ADAPTERS = {"vision": AdapterConfig(4, 8.0), "mine": AdapterConfig(64, 128.0)}


def test_the_table_of_the_docs() -> None:
    ranks, rates = (
        re.search(rf"(?m)^\| {name} \|([^\n]*\d)\ \|$", DOCS.read_text())[1].split("|")
        for name in ("rank", "rate")
    )
    assert [default_rate(int(rank)) for rank in ranks] == [float(rate) for rate in rates]


def test_a_higher_rank_has_a_lower_rate() -> None:
    rates = [default_rate(rank) for rank in (1, 8, 16, 64, 256, 1024)]
    assert rates == sorted(rates, reverse=True) and rates[0] == rates[1] == MAX_RATE
    assert default_rate(64) == pytest.approx(2 * default_rate(256))


def test_auto_is_replaced() -> None:
    trainable = {"decoder.*.lora.mine.*": "auto", "vision.projector.*": 1e-5}
    stage = resolved(replace(EVERYTHING, trainable=trainable), ADAPTERS)
    assert stage.trainable == {"decoder.*.lora.mine.*": 2e-4, "vision.projector.*": 1e-5}


@pytest.mark.parametrize(
    "glob", ["vision.projector.*", "decoder.*.lora.other.*", "decoder.*.lora.*", "*"]
)
def test_auto_for_anything_else_is_refused(glob: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(glob)}.*vision, mine"):
        resolved(replace(EVERYTHING, trainable={glob: "auto"}), ADAPTERS)
    with pytest.raises(ValueError, match="automatic"):
        resolved(replace(EVERYTHING, trainable={"decoder.*.lora.mine.*": "automatic"}), ADAPTERS)
