"""The training benchmark at a size of seconds: both sides take the same rows in the same steps."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polyphi.model.config import ModelConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def train(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("train")


@pytest.mark.long
@pytest.mark.parametrize("adapter", ["speech", "vision"])
def test_both_sides_do_the_same_work(
    train, adapter: str, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PICTURES", ((56, 56), (112, 56)))
    full = next(work for work in train.WORKS if work.name == adapter)
    work = replace(full, config=tiny_config, batch_tokens=400, steps=2)
    train.write(work, tmp_path)
    stored = torch.load(tmp_path / "rows.pt", weights_only=True)
    first = json.loads((tmp_path / "work.json").read_text())["steps"][0]
    assert 0 < sum(len(stored[place]["ids"]) for place in first) <= 400

    script = BENCHMARKS / "peers" / "transformers_peft.py"
    results = train.alternate(
        {"peer": [script, tmp_path], "short": [script, tmp_path, "--head", "supervised"]}, 1, 1
    )
    results["ours"] = [train.ours(work, tmp_path)]
    train.same_work(results, 0.3)
    # The peer's two heads differ in nothing but the positions without a label.
    torch.testing.assert_close(
        results["peer"][0]["losses"][0], results["short"][0]["losses"][0], atol=2e-3, rtol=0
    )
    counted = train.ours(work, tmp_path, count_flops=True)
    assert counted["flops_per_step"] > 1e6


def test_a_row_is_supervised_where_it_answers(train, tiny_config: ModelConfig) -> None:
    from planned_rows import as_batch

    work = replace(train.WORKS[1], config=tiny_config)
    for sample in train.spoken_or_seen(work, 3):
        batch = as_batch(sample, "speech")
        assert len(batch.supervised) == sum(sample["supervise"]) > 0
        assert batch.adapters == ("speech",)
        audio = batch.inputs["audio"]
        assert [len(audio.slots)] == audio.tokens


def test_rows_are_printed_as_one_json_list(train, capsys: pytest.CaptureFixture[str]) -> None:
    row = train.Row("vision speed", 3.0, 2.0, "a peer", "tokens/s", 0.5)
    train.show([row], as_json=True, others=[replace(row, peer_name="another")])
    (results,) = json.loads(capsys.readouterr().out)
    assert results == {
        "work": "vision speed",
        "ours": 3.0,
        "peer": 2.0,
        "peer_name": "a peer",
        "unit": "tokens/s",
        "ratio": 1.5,
        "limit_share": 0.5,
    }


@pytest.mark.long
def test_text_rows_come_from_the_corpora_of_text_1(train, tmp_path: Path) -> None:
    full = next(work for work in train.WORKS if work.name == "text")
    rows = train.written(replace(full, steps=2), tmp_path)
    assert sum(len(row["ids"]) for row in rows) > 2 * full.batch_tokens
    assert all(any(row["supervise"]) and not row["supervise"][0] for row in rows)


def test_a_profile_has_the_seconds_of_a_step_by_part(
    train, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = replace(train.WORKS[1], config=tiny_config, batch_tokens=200, steps=2)
    train.write(work, tmp_path)
    trainer = train.make_trainer(work, tmp_path, tmp_path / "out", "bf16", train.ProfiledTrainer)
    trainer.loop()
    parts = trainer.parts
    assert parts.keys() >= {
        "head and loss",
        "attention",
        "products, forward",
        "products, backward",
        "products of LoRA",
        "AdamW",
        "rows and packs",
        "Python",
    }
    assert all(seconds >= 0 for seconds in parts.values())
    (profile,) = trainer.profiles
    assert profile == parts
