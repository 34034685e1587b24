"""`polyphi eval MODEL --against REFERENCE`: what is printed and written, and options that don't fit together."""

import json
from pathlib import Path

import pytest

from polyphi.checkpoints.write import save_checkpoint
from polyphi.data import shards
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from tests.fixtures.command_line import Refused, RunCommand
from tests.fixtures.engines import SAYINGS, fitted, random_model


def save(config: ModelConfig, tokenizer: Tokenizer, folder: Path, **options: str) -> None:
    tokenizer.save(folder.with_name(f"{folder.name}-tokenizer"))
    files = sorted(folder.with_name(f"{folder.name}-tokenizer").iterdir())
    model = random_model(fitted(config, tokenizer), 0.12)
    save_checkpoint(model, folder, files=files, **options)


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig, tokenizer: Tokenizer
) -> Path:
    """A folder with the checkpoint `phi`, its quantized one `int8`, others of another tokenizer, and rows."""
    root = tmp_path_factory.mktemp("models")
    save(tiny_config, tokenizer, root / "phi")
    save(tiny_config, tokenizer, root / "int8", quant="int8")
    other = Tokenizer.train([text[::-1] for text in SAYINGS], vocab_size=384)
    save(tiny_config, other, root / "other")
    save(tiny_config, Tokenizer.train(SAYINGS, vocab_size=320), root / "smaller")
    document = shards.document("1", "the quick brown fox jumps", "us", "MIT")
    shards.write(root / "rows" / "test", [document], pipeline="test")
    return root


def test_a_quantized_model_is_compared(models: Path, run_command: RunCommand) -> None:
    out = models / "results" / "int8.json"
    words = ["eval", str(models / "int8"), "--against", str(models / "phi"), "--layers"]
    code, text, error = run_command(*words, "--rows", f"{models}/rows/test", "--out", str(out))
    assert code == 0, error
    value = json.loads(out.read_text())
    assert value["model"] == "int8 in int8" and value["reference"] == "phi"
    assert list(value["accuracy"]["parts"]) == ["layer 0", "layer 1", "head"]
    assert value["rows"] == "rows/test" and value["accuracy"]["whole"]["kl"] > 0
    lines = text.splitlines()
    assert lines[0].startswith("|") and lines[0].count("|") == 8
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [
        "all",
        "only layer 0",
        "only layer 1",
        "only head",
    ]
    assert lines[6].startswith("int8 in int8 against phi on rows/test: KL ")


def test_a_model_is_no_distance_from_itself_and_is_quantized_on_request(
    models: Path, run_command: RunCommand
) -> None:
    words = ["eval", str(models / "phi"), "--against", str(models / "phi")]
    _, text, _ = run_command(*words)
    assert "on texts of polyphi: KL 0 nats (99.9 %: 0), same most likely token 100.0 %" in text
    _, text, _ = run_command(*words, "--quant", "int4", "--rows", f"{models}/rows/test")
    assert "phi in int4 against phi on rows/test" in text and "KL 0 nats" not in text


def test_gguf_files_are_dequantized(models: Path, run_command: RunCommand) -> None:
    pytest.importorskip("gguf")
    file = models / "phi.gguf"
    run_command("export", str(models / "phi"), "--out", str(file), "--quant", "q8_0")
    words = ["--against", str(models / "phi"), "--rows", f"{models}/rows/test"]
    code, text, error = run_command("eval", str(file), *words)
    assert code == 0 and "not by llama.cpp" in error and "phi.gguf against phi on" in text
    words = ["--against", str(file), "--rows", f"{models}/rows/test"]
    code, text, _ = run_command("eval", str(models / "int8"), *words)
    assert code == 0 and "int8 in int8 against phi.gguf on" in text


@pytest.mark.parametrize(
    ("words", "stable"),
    [
        (["phi", "--rows", "rows/test"], "--rows"),
        (["phi", "--layers"], "--layers"),
        (["phi", "--against", "phi", "--suite", "mini"], "--suite"),
        (["phi", "--against", "phi", "--mini"], "--mini"),
        (["phi", "--against", "phi", "--data", "hub"], "--data"),
        (["phi", "--against", "phi", "--limit", "3"], "option of benchmarks"),
        (["phi", "arithmetic", "--against", "phi"], "second argument"),
        (["phi", "--against", "phi", "--out", "results"], "--out results"),
        (["phi", "--against", "phi", "--rows", "nowhere"], "nowhere"),
        (["phi", "--against", "int8"], "quantized to int8"),
        (["phi", "--against", "nowhere"], "nowhere"),
        (["phi", "--against", "other"], "one tokenizer"),
        (["phi", "--against", "smaller"], "one vocabulary"),
        (["int8", "--against", "phi", "--quant", "int4"], "can't become int4"),
        (["http://localhost:1/v1#model", "--against", "phi"], "http://localhost:1"),
        (["nothing.gguf", "--against", "phi"], "nothing.gguf"),
        (["nothing.gguf", "--against", "phi", "--quant", "int8"], "--quant int8"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    words: list[str],
    stable: str,
) -> None:
    monkeypatch.chdir(models)
    assert stable in refused("eval", *words)
