"""`polyphi plan`: correct advice, comparison with published figures, errors in one line."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from polyphi import cli
from polyphi.planning import fit
from polyphi.planning.assumptions import Hardware
from polyphi.planning.cost import Switches
from polyphi_recipe.graph import find, plan
from polyphi_recipe.recipe.recipe import short
from tests.fixtures.command_line import RunCommand
from tests.fixtures.variants import few

FULL = find.of("full")


@pytest.fixture(scope="module", autouse=True)
def stages_once() -> Iterator[None]:
    """The model of a stage of a recipe is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "stage_model", cache(plan.stage_model))
        yield


def test_text_1_takes_as_long_as_published() -> None:
    """The card of Phi-4-mini-instruct: 5T tokens on 512 A100 in 21 days. At the utilisation that we assume, 22.7."""
    result = plan.plan("text_1_pretrain", FULL, Hardware("512xA100"), Switches(fsdp=8))
    assert result.fits
    assert result.seconds * result.steps / 86400 == pytest.approx(21, rel=0.15)


@pytest.mark.parametrize(
    ("size", "devices", "unit"), [("nano", "1xcpu", "min"), ("full", "64xH100", "days")]
)
def test_times_have_a_unit_of_their_magnitude(
    size: str, devices: str, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for stages in (["text_1_pretrain"], ["text_1_pretrain", "text_4_align"]):
        cli.main(["plan", *stages, "--size", size, "--devices", devices])
        out = capsys.readouterr().out
        assert f" {unit}" in out and not re.search(r"\b0(\.0)? (days|h|min|device hours)", out)


def test_short_numbers_have_no_exponent() -> None:
    numbers = (0.5, 12, 999.6, 999_999, 4_567_000)
    assert [short(n) for n in numbers] == ["0.5", "12", "1k", "1M", "4.57M"]


def test_advice_holds() -> None:
    result = plan.plan("text_3_post", FULL, Hardware("64xH100"))
    assert not result.fits
    assert "--fsdp 2" in result.advice
    assert plan.plan("text_3_post", FULL, Hardware("64xH100"), Switches(fsdp=2)).fits
    assert "--activations recompute" in result.advice
    on = Switches(activations="recompute")
    assert plan.plan("text_3_post", FULL, Hardware("64xH100"), on).fits


def test_long_rows_are_shared() -> None:
    """Rows of 131,072 tokens fit only if devices share them."""
    result = plan.plan("text_2_long", FULL, Hardware("64xH100"))
    assert not result.fits and "--context-parallel 16 --activations recompute" in result.advice
    on = Switches(activations="recompute", context_parallel=16)
    shared = plan.plan("text_2_long", FULL, Hardware("64xH100"), on)
    assert shared.fits and shared.traffic["context"] > 0
    assert shared.memory["activations"] < result.memory["activations"] / 16


def test_samples_that_are_compared_are_divided() -> None:
    """Over packs, which take a second pass, and over devices."""
    one, more = (plan.plan("vision_0_encoder", FULL, Hardware(f"{n}xH100")) for n in (64, 512))
    assert one.fits and more.fits and "first pass" in one.flops
    assert more.seconds < one.seconds / 6
    smaller = plan.plan("vision_0_encoder", FULL, Hardware("64xH100"), Switches(micro_tokens=4096))
    assert smaller.memory["activations"] == pytest.approx(one.memory["activations"] / 2, rel=0.02)


@pytest.mark.parametrize(
    "name", few(["text_2_long", "vision_4_multiframe", "joint_1_vision_speech"], 1)
)
def test_a_fitting_setting_is_fast(name: str) -> None:
    plain, fitting = (plan.plan(name, FULL, Hardware("64xA100"), fit=fit) for fit in (False, True))
    assert fitting.fits
    for on in (Switches(activations="recompute", context_parallel=16), Switches(micro_tokens=1024)):
        other = plan.plan(name, FULL, Hardware("64xA100"), on)
        assert not other.fits or fitting.seconds <= 1.05 * other.seconds
    assert plain.fits or plain.switches != fitting.switches


def test_frozen_weights_are_quantized_where_nothing_else_fits(tmp_path: Path) -> None:
    """On a card of 24 GB, where they would fit into none of its settings in bf16."""
    file = tmp_path / "lab.toml"
    file.write_text('size = "full"\n[stages.vision_3_generative]\ncontext = 4096\n')
    lab, on = find.of(file), Switches(base="bf16")
    assert plan.plan("vision_2_joint", lab, Hardware("1xL4"), on, fit=True).switches.base == "bf16"
    fitting = plan.plan("vision_3_generative", lab, Hardware("1xL4"), on, fit=True)
    assert fitting.fits and fitting.switches.base in ("int8", "int4")
    others = [
        s for _, s, *_ in fit.changes(plan.stage_model("vision_3_generative", lab), on, 8, "L4")
    ]
    assert not [s for s in others if s.fsdp > 1 and s.base in fit.QUANTIZED]
    text = plan.stage_model("text_3_post", lab)
    assert {s.base for _, s, *_ in fit.changes(text, on, 8, "L4")} == {"bf16"}


def test_frozen_shards_take_their_share_in_their_dtype() -> None:
    target = plan.stage_model("vision_1_align", FULL)
    layers = target.size(target.sharded)
    for base, size in (("fp32", 4), ("bf16", 2)):
        whole, part = (
            plan.plan("vision_1_align", FULL, Hardware("8xH100"), Switches(fsdp=n, base=base))
            for n in (1, 8)
        )
        less = whole.memory["weights, frozen"] - part.memory["weights, frozen"]
        assert less == pytest.approx(size * layers * 7 / 8)


def test_options_are_readable_in_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "text_2_long", "vision_1_align", "--devices", "64xA100", "--fit"])
    lines = capsys.readouterr().out.splitlines()
    (options,) = [line for line in lines if "--" in line and "text_2_long" in line]
    assert "--fsdp" in options and "--context-parallel" in options and "…" not in options


def test_more_devices_are_faster_and_send_more() -> None:
    small, large = (plan.plan("vision_2_joint", FULL, Hardware(d)) for d in ("16xH100", "64xH100"))
    assert large.seconds < small.seconds
    assert large.traffic["gradients"] > small.traffic["gradients"]


def test_json_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "speech_2_post", "--json", "--price", "2", "--devices", "8xh200"])
    (result,) = json.loads(capsys.readouterr().out)
    assert result["devices"] == "8xH200"
    assert result["cost"] == pytest.approx(2 * result["device_hours"])
    assert result["trainable"][1][1] == 461_373_440  # LoRA_A


@pytest.mark.parametrize("names", [["vision_1_align"], ["speech_0_aed", "speech_1_pretrain"]])
def test_it_reads(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", *names])
    printed = capsys.readouterr().out
    assert "H100" in printed and "device hours" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text_1_pretrian"], "text_1_pretrain"),
        (["--size", "huge"], "unknown size"),
        (["--devices", "8xH1000"], "unknown devices"),
        (["text_1_pretrain", "--fsdp", "3"], "--fsdp 3"),
        (["speech_0_aed", "--fsdp", "8"], "omit --fsdp"),
        (["speech_2_post", "--fsdp", "8", "--base", "int4"], "omit --fsdp"),
        (["text_2_long", "--context-parallel", "5"], "--context-parallel 5"),
        (["text_4_align", "--context-parallel", "8"], "next-token prediction"),
        (["--activations", "forget"], '"keep", "recompute"'),
        (["--base", "fp8"], '"bf16", "int8", "int4"'),
        (["text_1_pretrain", "--base", "int4"], "only frozen weights"),
        (["--utilisation", "2"], "utilisation"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_fine_tune_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """On typical rows, three times, on a consumer GPU; a Mac says what its plan leaves out; a T4 isn't a Mac."""
    cli.main(["plan", "finetune", "speech", "--devices", "4090", "--fit", "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["devices"] == "1xRTX4090" and one["fits"] and one["steps"] == 100
    assert one["tokens"] == pytest.approx(3 * 1000 * 258, rel=0.01)
    assert {glob for glob, *_ in one["trainable"]} == {
        "audio.projector.speech.*",
        "decoder.*.lora.speech.*",
    }
    cli.main(["plan", "finetune", "text", "--devices", "M4 Max", "--memory", "36", "--steps", "10"])
    out = capsys.readouterr().out
    assert "36 GB" in out and "Mac's GPU" in out and "10 steps" in out
    with pytest.raises(SystemExit):
        cli.main(["plan", "speech_2_post", "--epochs", "2"])
    assert "--epochs" in capsys.readouterr().err


def test_rows_that_are_read_too_often_are_a_warning(
    tmp_path: Path, run_command: RunCommand
) -> None:
    """Epochs were shown as 2.23e+08, and nothing was said."""
    rows = [{"question": f"What comes after {n}?", "answer": f"{n + 1}"} for n in range(2000)]
    for name, count in (("few", 3), ("many", 2000)):
        text = "".join(f"{json.dumps(row)}\n" for row in rows[:count])
        (tmp_path / f"{name}.jsonl").write_text(text)
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "nano"\ntargets = ["text_1_pretrain"]\n[stages.text_1_pretrain]\n'
        "steps = 10\nmix = { instructions = 1, math = 1 }\n"
        '[corpora.instructions]\nsources = ["few.jsonl"]\n[corpora.math]\nsources = ["many.jsonl"]\n'
    )
    lab = find.of(file)
    (warning,) = plan.repeated(lab)
    assert "corpora.instructions" in warning and "3 rows" in warning
    assert not any(
        "e+" in cell for c in plan.sources_table(lab).columns for cell in map(str, c.cells)
    )
    code, out, _ = run_command("plan", str(file))
    assert code == 0 and warning in out
