"""The comparison of quantized models, on a tiny random model and made-up sums."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import polyphi
from polyphi.checkpoints.write import save_checkpoint
from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from tests.fixtures.engines import fitted, random_model


@pytest.fixture
def script(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("quantization")


@pytest.fixture
def run(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """A folder with a model and a corpus, as a finished run leaves them."""
    tokenizer = Tokenizer.train(["what is 1 + 2 ?", "3 4 5 6 7 8 9"], vocab_size=320)
    tokenizer.save(tmp_path / "tokenizer")
    config = fitted(tiny_config, tokenizer)
    model = random_model(config, 0.15)
    files = sorted((tmp_path / "tokenizer").iterdir())
    save_checkpoint(model, tmp_path / "model", files=files)
    samples = [
        Sample(
            str(i),
            (Message.user(f"what is {i} + {i + 1} ?"), Message.assistant(str(2 * i + 1))),
            "made up",
            "MIT",
            {"task": "arithmetic", "language": "en"},
        )
        for i in range(6)
    ]
    for split in ("train", "test"):
        shards.write(tmp_path / "data" / "instructions" / split, samples, pipeline="test")
    return tmp_path


def test_a_table_of_a_run(script, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main([str(run), "--rows", "3", "--tasks", "arithmetic"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| arithmetic | accuracy | 3 |")
    assert lines[3].startswith("| KL from bf16")
    assert all(line.count("|") == 5 + len(script.VARIANTS) for line in lines)


def test_a_model_is_no_distance_from_itself_and_four_bits_are_further_than_eight(
    script, run: Path
) -> None:
    whole = polyphi.load(run / "model", quant="bf16")
    conversations = [((Message.user(f"what is {n} ?"),), 6) for n in range(3)]
    rows = script.answered(whole, conversations)
    same = script.compare(whole.model, whole.model, rows).whole
    assert (same.kl, same.same_token) == (0.0, 1.0)
    first = int(rows[0].supervised[0])
    with torch.inference_mode():  # its own answers are what comes first
        logits = whole.model.logits(whole.model(rows[0])[rows[0].supervised])
    assert torch.equal(logits.argmax(-1), rows[0].ids[first + 1 :])
    corpora = [run / "data" / "instructions" / "train"]
    models = {
        variant: script.loaded(run / "model", variant, corpora) for variant in script.VARIANTS
    }
    far = {v: script.compare(whole.model, one.model, rows).whole.kl for v, one in models.items()}
    assert 0 < far["int8"] < far["int4"]


@pytest.mark.long
def test_tables_of_a_checkpoint_and_a_text(
    run: Path, capsys: pytest.CaptureFixture[str], benchmark: Callable[..., ModuleType]
) -> None:
    """Four bits are further from the whole model than eight, and calibrated ones less far."""
    text = run / "data" / "instructions"
    script = benchmark("perplexity")
    script.main([str(run / "model"), str(text / "test"), "--calibrate", str(text / "train")])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    weights_alone = [row for row in rows if len(row) == 5 and row[3].strip()[0].isdigit()]
    known = {(row[0].strip(), row[1].strip()): float(row[3]) for row in weights_alone}
    assert known["as stored", "as stored"] == pytest.approx(0, abs=1e-5)
    assert known["8", ""] < known["6", ""] < known["4", ""]
    assert known["4, calibrated", ""] < known["4", ""]
    assert known["", "8"] < known["", "6"] < known["", "4"]
    pairs = [(scheme, f"{scheme}, cache in 8 bits") for scheme in script.SCHEMES]
    names = ["quant", "---", "float32, cache in 8 bits", *(name for pair in pairs for name in pair)]
    assert [row[0].strip() for row in rows if len(row) == 4] == names


def test_flips_of_a_batch(
    run: Path, capsys: pytest.CaptureFixture[str], benchmark: Callable[..., ModuleType]
) -> None:
    """One row for each arithmetic; in float32 nothing flips but ties."""
    benchmark("batch_invariance").main([str(run), "--tasks", "arithmetic"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["float32", "bf16", "int8"]
    assert all(int(row[1]) > 10 for row in rows)
    assert float(rows[0][4]) < 1e-3 and int(rows[0][2].split()[0]) <= 1
