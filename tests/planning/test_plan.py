"""`polyphi plan`: advice that holds, figures beside published ones, errors in one line."""

import json

import pytest

from polyphi import cli
from polyphi.planning import plan
from polyphi.planning.cost import Switches
from polyphi.stages import sizes


def test_text_1_takes_as_long_as_published() -> None:
    """The card of Phi-4-mini-instruct: 5T tokens on 512 A100 in 21 days. At the utilisation that we assume, 22.7."""
    made = plan.plan("text_1_pretrain", sizes.FULL, "512xA100", Switches(shard=8))
    assert made.fits
    assert made.seconds * made.steps / 86400 == pytest.approx(21, rel=0.15)


def test_advice_holds() -> None:
    made = plan.plan("text_3_post", sizes.FULL, "64xH100")
    assert not made.fits
    assert "--shard 2" in made.advice
    assert plan.plan("text_3_post", sizes.FULL, "64xH100", Switches(shard=2)).fits
    assert "--activations recompute" in made.advice
    on = Switches(activations="recompute")
    assert plan.plan("text_3_post", sizes.FULL, "64xH100", on).fits


def test_long_rows_are_shared() -> None:
    """Rows of 131,072 tokens fit no device but by sharing them."""
    made = plan.plan("text_2_long", sizes.FULL, "64xH100")
    assert not made.fits and "--context 16 --activations recompute" in made.advice
    on = Switches(activations="recompute", context=16)
    shared = plan.plan("text_2_long", sizes.FULL, "64xH100", on)
    assert shared.fits and shared.traffic["context"] > 0
    assert shared.memory["activations"] < made.memory["activations"] / 16


def test_what_is_compared_with_each_other_stays_one_pack() -> None:
    """No switch and no further device helps the contrastive stage: the batch must be smaller."""
    made = plan.plan("vision_0_encoder", sizes.FULL, "64xH100")
    assert not made.fits
    assert made.advice and all(text.startswith("batch_tokens") for text in made.advice)
    more = plan.plan("vision_0_encoder", sizes.FULL, "128xH100")
    assert more.memory["peak"] == made.memory["peak"]


def test_more_devices_are_faster_and_send_more() -> None:
    few, many = (plan.plan("vision_2_joint", sizes.FULL, d) for d in ("16xH100", "64xH100"))
    assert many.seconds < few.seconds
    assert many.traffic["gradients"] > few.traffic["gradients"]


def test_json_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "speech_2_post", "--json", "--price", "2", "--devices", "8xh200"])
    (made,) = json.loads(capsys.readouterr().out)
    assert made["devices"] == "8xH200"
    assert made["cost"] == pytest.approx(2 * made["device_hours"])
    assert made["learn"][1][1] == 461_373_440  # LoRA_A


@pytest.mark.parametrize("names", [["vision_1_align"], ["speech_0_aed", "speech_1_pretrain"]])
def test_it_reads(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", *names])
    printed = capsys.readouterr().out
    assert "H100" in printed and "device hours" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["text_1_pretrian"], "text_1_pretrain"),
        (["--size", "huge"], "unknown size"),
        (["--devices", "8xH1000"], "unknown devices"),
        (["text_1_pretrain", "--shard", "3"], "can't be cut"),
        (["vision_3_generative", "--shard", "8"], "stages of the language model"),
        (["text_2_long", "--context", "5"], "can't be cut"),
        (["text_4_align", "--context", "8"], "pictures, clips or pairs"),
        (["--activations", "forget"], "keep or recompute"),
        (["--utilisation", "2"], "utilisation"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *arguments])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err
