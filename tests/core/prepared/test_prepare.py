"""A prepared model gives the plain one's results, has its parameters, and can be trained and prepared again."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyphi.engine.cache import BlockPool, BlockTable, Memory, StepCache
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.linear import PreparedLinear, PreparedLowRank
from polyphi.prepared.prepare import REPLACEMENTS, prepare
from polyphi.types.batch import Batch, pack
from tests.core.prepared.conftest import Pair, audio_row

# Relative errors in the 2-norm. Measured: float32 8e-7 (sums in another order, other exponentials); bfloat16 0.009 to
# 0.015, as much as the plain model in bfloat16 differs from float32 (0.011 to 0.016; the prepared one 0.009 to 0.015).
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.03}
PACKS = ("text", "one token", "speech", "mixed", "long")


def error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", PACKS)
def test_the_forward_without_gradients(
    pair: Callable[..., Pair], packs: dict[str, Batch], dtype: torch.dtype, name: str
) -> None:
    plain, prepared = pair(dtype)
    with torch.no_grad():
        logits = [m.logits(m(packs[name])) for m in (plain, prepared)]
    assert logits[1].dtype == dtype
    assert error(logits[1], logits[0]) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", PACKS)
def test_the_gradients(
    pair: Callable[..., Pair], packs: dict[str, Batch], dtype: torch.dtype, name: str
) -> None:
    gradients: list[dict[str, Tensor]] = []
    for model in pair(dtype):
        model.logits(model(packs[name])).float().logsumexp(-1).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, prepared = gradients
    assert prepared.keys() == plain.keys()
    joined = [torch.cat([g[n].flatten().float() for n in plain]) for g in (prepared, plain)]
    assert error(*joined) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_chunks_over_a_cache(
    pair: Callable[..., Pair], packs: dict[str, Batch], dtype: torch.dtype
) -> None:
    """A prompt in chunks, the last of one token, against the plain forward of the whole."""
    plain, prepared = pair(dtype)
    batch, config = packs["text"], plain.config.decoder
    memory = Memory(config, 8, dtype, torch.device("cpu"))
    table, outs = BlockTable(BlockPool(8)), []
    table.grow(len(batch))
    with torch.no_grad():
        for start, end in ((0, 17), (17, 39), (39, 40)):
            chunk = Batch(
                batch.ids[start:end], batch.positions[start:end], (0, end - start), (40,), (None,)
            )
            outs.append(prepared(chunk, StepCache(memory, [table], [end - start])))
            table.length = end
        assert error(torch.cat(outs), plain(batch)) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_each_module_on_its_own_inputs(
    pair: Callable[..., Pair], packs: dict[str, Batch], dtype: torch.dtype
) -> None:
    """Every call of a prepared module in a forward, repeated by the class that it replaces."""
    plain_classes = {prepared: plain for plain, prepared in REPLACEMENTS.items()}
    calls: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls.append((module, inputs, output.clone()))

    _, model = pair(dtype)
    for module in model.modules():
        if type(module) in plain_classes:
            module.register_forward_hook(record)
    compared = set()
    with torch.no_grad():
        model(packs["mixed"])
        for module, inputs, output in list(calls):
            if any(type(x).__name__.startswith("Packed") for x in inputs):
                continue  # packed rows or windows: their encoders are compared as a whole
            # without the last layer's `indices`, which the plain one doesn't have
            inputs = inputs[:-1] if inputs[-1] is None else inputs
            expected = plain_classes[type(module)].forward(module, *inputs)
            used = output.abs().sum(-1) > 0  # features of unused cells are 0
            assert error(output[used], expected[used]) < BOUNDS[dtype], type(module)
            compared.add(type(module))
    packed = {"PreparedSiglipAttention", "PreparedSiglipLayer", "PreparedConformerAttention"}
    left = {c.__name__ for c in REPLACEMENTS.values()} - {c.__name__ for c in compared}
    # called by their parents in other ways: test_linear.py, test_siglip.py
    others = {"PreparedTower"}  # of a user's modality: test_modality.py
    assert left - packed == {
        "PreparedLowRank",
        "PreparedSiglipEncoder",
        "PreparedConformerEncoder",
        *others,
    }


def test_parameters_stay_and_preparing_twice_changes_nothing(tiny_config) -> None:
    model = PhiModel(tiny_config)
    before = dict(model.named_parameters())
    assert prepare(model) is model
    classes = [type(m) for m in model.modules()]
    prepare(model)
    assert [type(m) for m in model.modules()] == classes
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[n] is p for n, p in before.items())
    assert not {type(m) for m in model.modules()} & REPLACEMENTS.keys()
    fresh = PhiModel(tiny_config)
    fresh.load_state_dict(model.state_dict())


def test_a_part_of_a_model_and_its_copies(tiny_config) -> None:
    """What is added later is prepared by the next call, and a copy stays prepared."""
    encoder = prepare(PhiModel(tiny_config).vision.encoder)
    assert isinstance(copy.deepcopy(encoder).head.attention.out_proj, PreparedLinear)
    model = prepare(PhiModel(tiny_config))
    linear = model.decoder.layers[0].mlp.down_proj
    linear.lora["mine"] = PhiModel(tiny_config).decoder.layers[0].mlp.down_proj.lora["vision"]
    assert isinstance(prepare(model).decoder.layers[0].mlp.down_proj.lora["mine"], PreparedLowRank)


def test_a_prepared_model_follows_its_weights(pair: Callable[..., Pair]) -> None:
    """Nothing is cached from the weights: a step of training changes the results without gradients too."""
    _, model = pair(torch.float32)
    batch = pack([audio_row()])
    with torch.no_grad():
        before = model(batch)
    model(batch).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    plain = PhiModel(model.config).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        after = model(batch)
        assert error(after, plain(batch)) < BOUNDS[torch.float32] < error(after, before)
