"""The accuracy of a quantized export: measured, written beside it, shown, and never that of other weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from polyphi import kernels
from polyphi.checkpoints import accuracy_file
from polyphi.checkpoints.files import ACCURACY
from polyphi.checkpoints.write import save_checkpoint
from polyphi.cli import accuracy
from polyphi.cli.printable import PrintableConsole
from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.hub.fingerprint import fingerprint
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.files import foreign_files
from polyphi.types.messages import Message
from tests.fixtures.command_line import Refused, RunCommand
from tests.fixtures.engines import fitted, picture, random_model


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig, tokenizer: Tokenizer
) -> Path:
    root = tmp_path_factory.mktemp("accuracy")
    tokenizer.save(root / "tokenizer")
    model = random_model(fitted(tiny_config, tokenizer), 0.12)
    save_checkpoint(model, root / "phi", files=sorted((root / "tokenizer").iterdir()))
    return root / "phi"


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    out = checkpoint.parent / "int4"
    export(checkpoint, out)
    return out


def export(checkpoint: Path, out: Path, *options: str) -> None:
    from polyphi import cli

    cli.main(["export", str(checkpoint), "--out", str(out), "--quant", "int4", *options])


def samples(number: int) -> list[Sample]:
    """Conversations about text and about images, in turn."""
    return [
        Sample(
            str(i),
            (
                Message.user(*([picture()] if i % 2 else []), f"{i} + 1 ?"),
                Message.assistant(f"the lazy dog {i}"),
            ),
            "us",
            "MIT",
        )
        for i in range(number)
    ]


@pytest.fixture(scope="module")
def rows(checkpoint: Path) -> Path:
    shards.write(checkpoint.parent / "rows" / "test", samples(4), pipeline="test")
    return checkpoint.parent / "rows" / "test"


def test_an_export_has_its_accuracy(
    checkpoint: Path, exported: Path, run_command: RunCommand
) -> None:
    value = json.loads((exported / ACCURACY).read_text())
    assert value["reference"] == "phi" and value["fingerprint"] == fingerprint(checkpoint)
    assert value["rows"] == accuracy.OWN_TEXTS and value["kernels"] == kernels.path()
    assert value["tokens"] == value["accuracy"]["whole"]["positions"] > 1000
    assert 0 < value["accuracy"]["whole"]["kl"] < value["accuracy"]["whole"]["kl_tail"]
    measurement = accuracy_file.read(exported)
    assert measurement is not None and measurement.as_json() == value
    line = str(measurement)
    code, text, _ = run_command("inspect", str(exported))
    assert code == 0 and f"accuracy next to phi: {line}" in text.splitlines()
    assert line in (exported / "README.md").read_text()
    assert str(checkpoint.parent) not in (exported / ACCURACY).read_text()


def test_a_second_export_into_the_folder_replaces_it(
    checkpoint: Path, exported: Path, rows: Path
) -> None:
    assert foreign_files(exported) == []
    first = (exported / "README.md").read_text()
    export(checkpoint, exported, "--measure", str(rows))
    value = json.loads((exported / ACCURACY).read_text())
    assert value["rows"] == "rows/test" and list(value["accuracy"]["modalities"]) == [
        "text",
        "image",
    ]
    (exported / "README.md").write_text(first + "mine")
    export(checkpoint, exported, "--no-accuracy")
    assert not (exported / ACCURACY).exists()
    export(checkpoint, exported)
    assert (exported / "README.md").read_text() == first + "mine"
    assert foreign_files(exported) == ["README.md"]
    assert (exported / "README.polyphi.md").read_text() == first
    (exported / "README.md").unlink()
    export(checkpoint, exported)
    assert (exported / "README.md").read_text() == first


def test_it_stays_with_its_weights(
    checkpoint: Path, exported: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    """A copy of the quantized weights has it, and other weights don't."""
    run_command("export", str(exported), "--out", str(tmp_path / "copy"), "--quant", "int4")
    copied = (tmp_path / "copy" / ACCURACY).read_bytes()
    assert copied == (exported / ACCURACY).read_bytes()
    assert "same most likely token" in (tmp_path / "copy" / "README.md").read_text()
    (checkpoint / ACCURACY).write_bytes(copied)
    try:
        for name, options in (("whole", []), ("int8", ["--quant", "int8", "--no-accuracy"])):
            out = tmp_path / name
            run_command("export", str(checkpoint), "--out", str(out), *options)
            assert (out / "config.json").is_file() and not (out / ACCURACY).exists()
            assert "same most likely token" not in (out / "README.md").read_text()
    finally:
        (checkpoint / ACCURACY).unlink()


def test_a_merged_adapter_is_in_the_reference(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "out", "--merge", "vision", "--measure", str(rows))
    measurement = accuracy_file.read(tmp_path / "out")
    assert measurement is not None and measurement.reference == "phi with vision merged"
    assert list(measurement.accuracy.adapters) == ["none", "vision"]
    assert measurement.accuracy.adapters["vision"].kl < 0.5


def test_a_model_without_tokenizer_is_exported_without_accuracy(
    tiny_config: ModelConfig, tmp_path: Path, run_command: RunCommand, refused: Refused, rows: Path
) -> None:
    save_checkpoint(random_model(tiny_config), tmp_path / "phi")
    words = ["export", str(tmp_path / "phi"), "--out", str(tmp_path / "out"), "--quant", "int8"]
    code, text, _ = run_command(*words)
    assert code == 0 and "no tokenizer.json" in text
    assert not (tmp_path / "out" / ACCURACY).exists()
    assert "no tokenizer.json" in refused(*words, "--measure", str(rows))


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "{}/x", "--measure", "{}/rows/test"],
        ["--out", "{}/x", "--quant", "int8", "--no-accuracy", "--measure", "{}/rows/test"],
        ["--out", "{}/x.gguf", "--measure", "{}/rows/test"],
    ],
)
def test_shards_are_refused_where_nothing_is_measured(
    checkpoint: Path, rows: Path, refused: Refused, options: list[str]
) -> None:
    words = [word.format(checkpoint.parent) for word in options]
    assert "--measure" in refused("export", str(checkpoint), *words)
    assert not (checkpoint.parent / "x").exists()


def test_a_terminal_gets_a_table_and_a_pipe_markdown(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measurement = accuracy_file.read(exported)
    assert measurement is not None
    accuracy.show(measurement.accuracy)
    assert capsys.readouterr().out.startswith("|  | tokens | KL, nats |")
    monkeypatch.setattr(accuracy, "console", PrintableConsole(force_terminal=True, width=120))
    accuracy.show(measurement.accuracy)
    text = capsys.readouterr().out
    assert "|" not in text and f"{measurement.accuracy.whole.positions:,}" in text


@pytest.mark.parametrize(
    "value", ["[]", "{", '{"format": 1}', '{"format": 2}', '{"accuracy": "67 %"}', "9" * 5000]
)
def test_a_file_of_others_is_not_shown(value: str, tmp_path: Path) -> None:
    (tmp_path / ACCURACY).write_text(value)
    assert accuracy_file.read(tmp_path) is None


def test_held_out_rows_of_a_run_come_first(
    checkpoint: Path, tmp_path: Path, tiny_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    run = tmp_path / "run"
    (run / "stages" / "text_1").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    mix = {"sums": 1.0, "no_test": 1.0}
    (run / "stages" / "text_1" / "manifest.json").write_text(json.dumps({"mix": mix}))
    shards.write(run / "data" / "sums" / "test", samples(2), pipeline="test")
    text_only = replace(fitted(tiny_config, tokenizer), vision=None, audio=None, adapters={})
    save_checkpoint(
        random_model(text_only, 0.12),
        run / "text",
        files=sorted((checkpoint.parent / "tokenizer").iterdir()),
    )
    reference = accuracy.load_reference(str(run / "text"))
    measurement = accuracy.measure(reference, accuracy.load(str(checkpoint)))
    assert measurement.rows == "held-out rows of run"
    assert list(measurement.accuracy.modalities) == ["text"]  # one of the models reads no images
