"""The model card of an export: a YAML header, correct content, and no overwriting of a user's file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from polyphi import cli
from polyphi.checkpoints.write import save_checkpoint
from polyphi.hub import model_card
from polyphi.hub.fingerprint import fingerprint as fingerprint_of
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel


@pytest.fixture
def checkpoint(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    model = PhiModel(tiny_config)
    model.initialise(0)
    save_checkpoint(model, tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def header(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return fields


def results(folder: Path, fingerprint: str) -> Path:
    metric = {"type": "accuracy", "value": 67.3, "name": "accuracy"}
    content = {
        "model": "it",
        "card": {
            "measured": "| MMLU | 67.3 | 67.3 | +0.0 |\n\nSkipped: BLINK",
            "results": [{"task": {"type": "text-generation"}, "metrics": [metric]}],
        },
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "model.json").write_text(json.dumps({"name": "it", "fingerprint": fingerprint}))
    return folder


def test_it_holds_tables_limits_and_licences(checkpoint: Path, tmp_path: Path) -> None:
    measured = results(tmp_path / "results", fingerprint_of(checkpoint) + " ")
    text = model_card.card(checkpoint, "native", results=measured)
    assert "| MMLU | 67.3 | 67.3 | +0.0 |" in text and "Skipped: BLINK" in text
    assert "No biometric categorisation" in text and "## Licences" in text
    (entry,) = header(text)["model-index"]
    assert [r["metrics"][0]["value"] for r in entry["results"]] == [67.3]


def test_results_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = results(tmp_path / "other", "0" * 32)
    with pytest.raises(ValueError, match="another model"):
        model_card.card(checkpoint, "native", results=other)
    endpoint = results(tmp_path / "endpoint", "http://127.0.0.1:8000/v1#phi")
    assert "MMLU" in model_card.card(checkpoint, "native", results=endpoint)
    with pytest.raises(ValueError, match=r"--out"):
        model_card.card(checkpoint, "native", results=tmp_path)
    content = json.loads((endpoint / "results.json").read_text())
    del content["card"]
    (endpoint / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"eval score {endpoint}"):
        model_card.card(checkpoint, "native", results=endpoint)
    with pytest.raises(ValueError, match="found 'gguf'"):
        model_card.card(checkpoint, "gguf")


def test_a_published_base_is_named_with_its_licence(checkpoint: Path) -> None:
    known = header(
        model_card.card(checkpoint, "native", source="microsoft/Phi-4-multimodal-instruct")
    )
    assert known["base_model"] == "microsoft/Phi-4-multimodal-instruct"
    assert known["license"] == "mit" and "speech" in known["tags"]
    other = model_card.card(checkpoint, "mini", source="somebody/phi")
    assert header(other)["license"] == "other" and "add it here" in other
    assert header(other)["pipeline_tag"] == "text-generation"
    assert "license" not in header(model_card.card(checkpoint, "native", source=str(checkpoint)))


def test_the_card_of_a_run_has_stages_freeze_and_data(checkpoint: Path) -> None:
    run = checkpoint.parent
    (run / "run.json").write_text(json.dumps({"size": "nano", "seed": 3}))
    exports = {"model": ["text_1_pretrain", "vision_1_align"]}
    (run / model_card.EXPORTS).write_text(json.dumps(exports))
    for stage, glob in (
        ("text_1_pretrain", "decoder.*"),
        ("vision_1_align", "vision.projector.*"),
    ):
        (run / "stages" / stage).mkdir(parents=True)
        manifest = {
            "learning_rates": {glob: 1e-3},
            "steps": 1250,
            "counters": {"tokens": 99_000},
            "mix": {"copying": 1},
        }
        (run / "stages" / stage / "manifest.json").write_text(json.dumps(manifest))
    (run / "data" / "copying" / "train").mkdir(parents=True)
    (run / "data" / "copying" / "train" / "manifest.json").write_text(
        json.dumps({"licences": {"MIT": 30}})
    )
    freeze = {"stage": "vision_1_align", "logits_sha256_before": "a", "logits_sha256_after": "a"}
    (run / "freeze.json").write_text(json.dumps([freeze]))
    text = model_card.card(checkpoint, "native")
    assert "# polyphi nano" in text and "--seed 3" in text
    assert "| text_1_pretrain | language model | 1,250 | 99,000 | copying |" in text
    assert "frozen in 1 of these stages: in 1 of them" in text and "- MIT: 30 rows" in text
    assert header(text)["license"] == "other"


def test_no_value_of_a_run_breaks_a_line_or_a_row(checkpoint: Path) -> None:
    run = checkpoint.parent
    (run / "run.json").write_text(json.dumps({"size": "nano\n# Heading", "seed": 3}))
    (run / model_card.EXPORTS).write_text(json.dumps({"model": ["a"]}))
    (run / "stages" / "a").mkdir(parents=True)
    manifest = {"learning_rates": {"decoder.*": 1}, "steps": 1, "counters": {"tokens": 9}}
    manifest["mix"] = {"one | two\n\n# Heading": 1}
    (run / "stages" / "a" / "manifest.json").write_text(json.dumps(manifest))
    text = model_card.card(checkpoint, "native")
    assert "\n# Heading" not in text and "| one / two  # Heading |\n" in text


def test_the_card_of_a_fine_tuned_model_has_its_base(checkpoint: Path) -> None:
    manifest = {
        "trainable": [],
        "parents": {"hf:microsoft/Phi-4-multimodal-instruct": 90, "copy of speech": 4},
        "learning_rates": {"decoder.*.lora.medical.*": 1e-4},
        "steps": 40,
        "mix": {"calls": 1},
        "frozen": {"a": ["1", "1"]},
    }
    (checkpoint.parent / "manifest.json").write_text(json.dumps(manifest))
    text = model_card.card(checkpoint, "native", source=str(checkpoint), merged="medical")
    assert header(text)["base_model"] == "microsoft/Phi-4-multimodal-instruct"
    assert "in 40 steps" in text and "`decoder.*.lora.medical.*`" in text
    assert "`medical` was merged into" in text


def test_export_writes_it_and_keeps_a_users_card(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", str(checkpoint), "--out", str(out)]
    cli.main(command)
    first = (out / "README.md").read_text()
    cli.main(command)  # generated and unchanged: rewritten
    assert (out / "README.md").read_text() == first
    assert not (out / "README.polyphi.md").exists()
    (out / "README.md").write_text(first.replace("# ", "# My own, "))
    cli.main(command)
    assert "My own" in (out / "README.md").read_text()
    assert (out / "README.polyphi.md").read_text() == first
    assert "is unchanged" in capsys.readouterr().out.replace("\n", " ")
    (out / "README.polyphi.md").write_text("mine too")
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "move one away" in capsys.readouterr().err
    assert (out / "README.polyphi.md").read_text() == "mine too"
    assert (out / "config.json").exists()
