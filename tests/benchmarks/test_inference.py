"""The benchmark of kernels against other engines, with simulated sides, and ours at a size of milliseconds."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from polyphi.model.config import ModelConfig
from polyphi.types.batch import row
from tests.fixtures.variants import few

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
LIBRARY = f"transformers {version('transformers')} {{}}"
PRETENDER = """
import sys, time
import numpy as np
from turns import take_turns

class Pretender:
    vocabulary, bytes = 50, 1000
    def prefill(self, ids):
        print("a library's chatter")
        time.sleep(float(sys.argv[1]))
    def decode(self, prompts, more):
        assert prompts.shape == (len(more), 256)
        return more.size * float(sys.argv[1])
    def logits(self, ids):
        return np.ones(50) * float(sys.argv[2])
    def first(self, kind, file):
        assert file.stat().st_size > 1000 and file.suffix == {"picture": ".jpg", "clip": ".wav"}[kind]
        return {"seconds": float(sys.argv[1]), "media": 0.1, "encoders": 0.2, "prefill": 0.3, "tokens": 9,
                "positions": 8}

take_turns(Pretender())
"""


@pytest.fixture
def bench(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("inference")


@pytest.fixture
def theirs(benchmark: Callable[..., ModuleType]) -> ModuleType:
    pytest.importorskip("peft")
    return benchmark("transformers_phi", PEERS)


@pytest.fixture
def pretend(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replace every side with a fake one: seconds per token, and its logits."""
    script = tmp_path / "pretender.py"
    script.write_text(PRETENDER)
    monkeypatch.setenv("PYTHONPATH", str(PEERS))
    speeds = {"int4": 0.001, "int8": 0.002, LIBRARY.format("bf16"): 0.01}

    def command(name: str, *_: object) -> list[object]:
        # `env` in front, so that the environment's own path stays
        seconds = speeds.get(name, 0.004)
        return [
            "/usr/bin/env",
            f"PYTHONPATH={PEERS}",
            sys.executable,
            script,
            seconds,
            1,
        ]

    monkeypatch.setattr(bench, "command", command)
    monkeypatch.setattr(bench, "measured", lambda: bench.Limits(1e9, 1e12, 2e12))
    monkeypatch.setattr(bench, "prepare", lambda *_: list(bench.PEERS))
    monkeypatch.setattr(bench, "checkpoint", lambda *_: None)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda n: None)
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path))
    return command


@pytest.mark.long
def test_every_row_is_printed_with_the_best_peer(bench, pretend, capsys) -> None:
    bench.main(["--json", "--repeats", "1", "--layers", "1", "--peer-dtype", "bf16"])
    rows = {row["work"]: row for row in json.loads(capsys.readouterr().out)}
    words = ("decode", "decode 8 sequences", "prefill", "prefill 256", "prefill 2048")
    seen = ("first token", "first token picture", "first token clip")
    expected = {f"{name} {kind}" for name in words for kind in ("int4", "int8")}
    assert rows.keys() == expected | {f"{name} {kind}" for name in seen for kind in bench.SCHEMES}
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows.values())
    decode = rows["decode int4"]
    assert (decode["ours"], decode["peer"]) == (pytest.approx(1000), pytest.approx(250))
    assert decode["peer_name"] != LIBRARY.format("bf16")
    # a step of ours reads 1,000 bytes in 1 ms, and could read 1 GB in a second
    assert decode["limit_share"] == pytest.approx(1e-3)
    assert rows["first token clip int8"]["peer_name"] == LIBRARY.format("bf16")


def test_transformers_in_float32_is_a_process_in_float32(
    bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder is cut where no number of layers is requested and both sides don't fit."""
    library = bench.Transformers("fp32")
    config = bench.engine.Size().config

    def fitting(free: float, *options: str) -> tuple[str, str]:
        monkeypatch.setattr(bench, "free_memory", lambda device: free)
        args = bench.parse(["--kinds", "int8-all", *options])
        args.library = library
        depth, peer = bench.fitting(args, config, args.kinds)
        return depth, peer.name

    name = LIBRARY.format("fp32")
    assert fitting(64e9) == ("all", name)
    assert fitting(20e9) == ("8-decoder", f"{name}, 8 layers")
    assert fitting(20e9, "--layers", "4") == ("4", name)
    assert fitting(20e9, "--layers", "4", "--whole-encoders") == ("4-decoder", name)
    start = bench.command(name, Path(), "8-decoder", 2, "multimodal", library)
    assert start[-4:] == [2, "8-decoder", "multimodal", "fp32"]
    cut = bench.engine.Size().at("8-decoder").config
    assert cut.decoder.num_hidden_layers == 8 and cut.audio == config.audio
    assert bench.engine.Size().at("2").config.audio.num_blocks == 2


@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16], 1))
def test_transformers_answers_in_each_dtype(
    bench, theirs, tiny_config: ModelConfig, tmp_path: Path, dtype: torch.dtype, monkeypatch
) -> None:
    assert tiny_config.vision is not None
    vision = replace(tiny_config.vision, crop_size=448)
    longer = {"max_position_embeddings": 4096, "original_max_position_embeddings": 2048}
    decoder = replace(tiny_config.decoder, vocab_size=512, **longer)
    size = bench.engine.Size(replace(tiny_config, vision=vision, decoder=decoder))
    monkeypatch.setattr(theirs.engine, "Size", lambda: size)
    side = theirs.Multimodal("all", dtype)
    assert {p.dtype for p in side.model.parameters()} == {dtype}
    for kind, file in bench.media(tmp_path, 0).items():
        assert side.first(kind, file)["tokens"] > 100
    logits = theirs.Language("all", dtype).logits(np.arange(8))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_products_stand_beside_torch_in_its_faster_precision(
    bench, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = bench.matrix_products
    if reason := products.kernels.missing():
        pytest.skip(reason)
    monkeypatch.setattr(products, "SHAPES", {"one": (256, 256)})
    monkeypatch.setattr(products, "LAYERS", 1)
    monkeypatch.setattr(products, "read_rate", lambda seconds: 1e9)
    monkeypatch.setattr(products, "product_limit", lambda seconds: (1e9, precision))
    rows = products.compare(1, bench.Transformers(precision))
    own = {"int4 without AMX", "int8 without AMX"} if products.native.amx() else set()
    peers = {"torch int4", "oneDNN int8", f"torch {precision}"}
    assert {row.peer_name for row in rows} == peers | own


def test_a_name_for_two_works_tells_the_worse(bench) -> None:
    rows = [
        bench.Row("prefill 256 int8", 20.0, 10.0, "x", "tok/s", 0.5),
        bench.Row("prefill 2048 int8", 9.0, 10.0, "y", "tok/s", 0.5),
        bench.Row("first token clip int8", 9.0, 10.0, "y", "per s", 0.5),
    ]
    assert bench.worst(rows) == [bench.Row("prefill int8", 9.0, 10.0, "y", "tok/s", 0.5)]


def test_a_side_that_computes_something_else_is_refused(bench, pretend, tmp_path: Path) -> None:
    def side(value: float):
        return bench.Process("x", [*pretend("int4")[:-1], value], 1)

    sides = {"library": side(1.0), "other": side(1.1)}
    try:
        bench.same_work(sides, 0.2, "library")
        with pytest.raises(RuntimeError, match=r"other .* 0\.100"):
            bench.same_work(sides, 0.05, "library")
    finally:
        for process in sides.values():
            process.close()


def test_a_side_that_ends_says_why(bench) -> None:
    dying = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(RuntimeError, match=r"who .*code 1: no such model"):
        bench.Process("who", dying, 1)


def test_sides_that_do_not_fit_together_take_turns_in_groups(bench) -> None:
    config = bench.engine.language(ModelConfig())
    library = bench.Transformers("bf16")
    everything = bench.grouped(config, "int4", bench.PEERS, library, 64e9)
    assert [len(group) for group in everything] == [6]
    tight = bench.grouped(config, "int4", bench.PEERS, library, 18e9)
    assert len(tight) > 1 and sorted(chain(*tight)) == sorted(everything[0])


def test_no_two_weights_of_a_random_model_are_equal(bench, tiny_config: ModelConfig) -> None:
    model = bench.engine.random_model(bench.engine.language(tiny_config))
    one, two = (layer.mlp.down_proj.weight for layer in model.decoder.layers[:2])
    assert not torch.equal(one, two)
    assert float(one.float().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_our_side_computes_what_the_model_does(
    bench,
    benchmark: Callable[..., ModuleType],
    tiny_config: ModelConfig,
    tmp_path: Path,
    kind: str,
) -> None:
    ours = benchmark("ours", PEERS)
    config = bench.engine.language(tiny_config)
    bench.checkpoint(config, tmp_path, kind, "mini")
    side = ours.Language(str(tmp_path / kind))
    ids = np.random.default_rng(0).integers(0, side.vocabulary, 300)
    with torch.inference_mode():
        model = side.model
        expected = model.logits(model(row(ids.tolist()))[-1:]).float()[0].numpy()
    np.testing.assert_allclose(side.logits(ids), expected, rtol=0.05, atol=0.05)
    assert side.decode(ids[None, :256].repeat(3, 0), ids[None, :2].repeat(3, 0)) > 0
    assert side.pool.in_use == 0


def test_transformers_holds_our_multimodal_tensors(bench, theirs, tiny_config: ModelConfig) -> None:
    assert tiny_config.vision is not None
    config = replace(tiny_config, vision=replace(tiny_config.vision, crop_size=448))
    ours = bench.engine.random_model(config)
    peer = theirs.multimodal(ours)
    theirs.use(peer, "speech")
    pointers = {t.data_ptr() for t in peer.state_dict().values()}
    assert {t.data_ptr() for t in ours.state_dict().values()} <= pointers
