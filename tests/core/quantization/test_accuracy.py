"""The difference of a model from a reference, on tiny random models."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from polyphi.checkpoints.processor import make_processor
from polyphi.data import accuracy_rows
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.accuracy import compare
from polyphi.quantization.quantize import quantize
from polyphi.quantization.rounding import four_bits
from polyphi.types.accuracy import Accuracy, Difference, digits
from polyphi.types.batch import Batch, row
from polyphi.types.messages import Message
from tests.fixtures.engines import clip, fitted, picture, random_model


@pytest.fixture(scope="module")
def config(tiny_config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    return fitted(tiny_config, tokenizer, num_hidden_layers=3)


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> PhiModel:
    return prepare(random_model(config, 0.12))


@pytest.fixture(scope="module")
def rows(config: ModelConfig, tokenizer: Tokenizer) -> list[Batch]:
    """A document and conversations about text, an image, audio and both."""
    processor = make_processor(config, tokenizer)
    answer = Message.assistant("the lazy dog")
    conversations = [
        [Message("document", ("the quick brown fox jumps",))],
        [Message.user("1 + 2 ?"), answer],
        [Message.user(picture(), "what ?"), answer],
        [Message.user(clip(), "what ?"), answer],
        [Message.user(picture(), clip()), answer],
    ]
    return [processor.row(turns, supervise="answers") for turns in conversations]


def changed(model: PhiModel, *layers: int, scale: float = 0.3) -> PhiModel:
    """A copy of a model with other weights in some layers."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers:
            weight = other.decoder.layers[layer].mlp.down_proj.weight
            weight += scale * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(layer)
            )
    return other


def near(difference: Difference) -> tuple[float, ...]:
    """The figures, for comparison within the rounding of sums."""
    return pytest.approx(tuple(vars(difference).values()), rel=1e-4, abs=1e-6)


def test_equal_models_do_not_differ(model: PhiModel, rows: list[Batch]) -> None:
    whole = compare(model, copy.deepcopy(model), rows).whole
    assert (whole.kl, whole.kl_tail, whole.same_token, whole.perplexity_ratio) == (0, 0, 1, 1)
    assert whole.positions == sum(len(one.supervised) for one in rows)
    assert str(whole) == (
        "KL 0 nats (99.9 %: 0), same most likely token 100.0 %, perplexity 1.000 times, "
        f"{whole.positions} held-out tokens"
    )


def test_figures_are_those_of_the_distributions(model: PhiModel) -> None:
    """Computed by hand, position by position, over more positions than have logits at once."""
    other = changed(model, 1)
    ids = torch.randint(20, 300, (150,), generator=torch.Generator().manual_seed(5)).tolist()
    one = row(ids, supervise=[i % 3 > 0 for i in range(150)])
    accuracy = compare(model, other, [one])
    divergences, same, losses = [], 0, [0.0, 0.0]
    with torch.inference_mode():
        p, q = (m.logits(m(one)).double().softmax(-1) for m in (model, other))
    positions = [t for t in range(149) if (t + 1) % 3 > 0]
    for t in positions:
        terms = zip(p[t].tolist(), q[t].tolist(), strict=True)
        divergences.append(sum(a * math.log(a / b) for a, b in terms))
        same += int(p[t].argmax() == q[t].argmax())
        losses = [x - math.log(d[t, ids[t + 1]]) for x, d in zip(losses, (p, q), strict=True)]
    count = len(positions)
    expected = Difference(
        count,
        sum(divergences) / count,
        float(torch.tensor(divergences, dtype=torch.float64).quantile(0.999)),
        same / count,
        math.exp(losses[1] / count),
        math.exp((losses[1] - losses[0]) / count),
    )
    assert tuple(vars(accuracy.whole).values()) == near(expected)
    assert 0 < accuracy.whole.kl < accuracy.whole.kl_tail <= max(divergences) * 1.001


def test_modalities_and_adapters_add_up_to_the_whole(model: PhiModel, rows: list[Batch]) -> None:
    accuracy = compare(model, changed(model, 0, 2), rows)
    assert list(accuracy.modalities) == ["text", "image", "audio", "image+audio"]
    assert list(accuracy.adapters) == ["none", "vision", "speech"]
    for groups in (accuracy.modalities, accuracy.adapters):
        counts = [one.positions for one in groups.values()]
        assert sum(counts) == accuracy.whole.positions
        for name in ("kl", "same_token"):
            values = [getattr(one, name) for one in groups.values()]
            total = sum(n * value for n, value in zip(counts, values, strict=True)) / sum(counts)
            assert total == pytest.approx(getattr(accuracy.whole, name))
    one = compare(model, changed(model, 0, 2), [rows[2]])
    assert tuple(vars(accuracy.modalities["image"]).values()) == near(one.whole)


def test_a_layer_is_the_whole_if_no_other_one_differs(model: PhiModel, rows: list[Batch]) -> None:
    accuracy = compare(model, changed(model, 1), rows, parts=True)
    assert list(accuracy.parts) == ["layer 0", "layer 1", "layer 2", "head"]
    assert tuple(vars(accuracy.parts["layer 1"]).values()) == near(accuracy.whole)
    for part in ("layer 0", "layer 2", "head"):
        assert accuracy.parts[part].kl == pytest.approx(0, abs=1e-6)


def test_the_head_is_a_part(model: PhiModel, rows: list[Batch]) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = four_bits(model.decoder.embed_tokens.weight).weight()
    other.decoder.head = partial(F.linear, weight=weight)
    accuracy = compare(model, other, rows[:2], parts=True)
    assert tuple(vars(accuracy.parts["head"]).values()) == near(accuracy.whole)
    assert accuracy.whole.kl > 0


def test_a_model_of_another_dtype_and_quantized_ones(model: PhiModel, rows: list[Batch]) -> None:
    kl = {}
    for scheme in ("bf16", "int8", "int4"):
        other = copy.deepcopy(model).to(torch.bfloat16)
        kl[scheme] = compare(model, quantize(other, scheme), rows, parts=True).whole.kl
    assert 0 < kl["bf16"] < kl["int4"] and 0 < kl["int8"] < kl["int4"]


def test_an_adapter_that_a_model_lacks_is_left_out(
    model: PhiModel, config: ModelConfig, rows: list[Batch]
) -> None:
    alone = PhiModel(replace(config, adapters={})).eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    accuracy = compare(model, prepare(alone), rows)
    assert accuracy.adapters["none"].kl == pytest.approx(0, abs=1e-6)
    assert accuracy.adapters["vision"].kl > 1e-3


def test_what_cannot_be_compared_is_refused(
    model: PhiModel, config: ModelConfig, tiny_config: ModelConfig, rows: list[Batch]
) -> None:
    with pytest.raises(ValueError, match="1,000"):
        compare(model, random_model(tiny_config), rows)
    fewer = replace(config, decoder=replace(config.decoder, num_hidden_layers=2))
    with pytest.raises(ValueError, match="found 2 of width 96"):
        compare(model, random_model(fewer), rows, parts=True)
    with pytest.raises(ValueError, match="supervised"):
        compare(model, model, [row([20, 21, 22])])
    broken = changed(model)
    with torch.no_grad():
        broken.decoder.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="row 1 of 5"):
        compare(model, broken, rows)


def test_the_json_form_is_read_again(model: PhiModel, rows: list[Batch]) -> None:
    accuracy = compare(model, changed(model, 0), rows, parts=True)
    value = json.loads(json.dumps(accuracy.as_json()))
    assert Accuracy.from_json(value) == accuracy
    assert [line[0] for line in accuracy.rows()][:3] == ["all", "text", "image"]
    for other in (
        None,
        {**value, "more": 1},
        {**value, "whole": 3},
        {**value, "parts": []},
        {**value, "whole": {**value["whole"], "kl": "0"}},
        {**value, "whole": {**value["whole"], "kl": 10**400}},
    ):
        with pytest.raises(ValueError, match="expected"):
            Accuracy.from_json(other)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.00331, "0.0033"), (0.1, "0.10"), (12.3, "12")]
)
def test_divergences_have_two_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_our_texts_are_rows_with_labels(config: ModelConfig, tokenizer: Tokenizer) -> None:
    rows = accuracy_rows.own_texts(make_processor(config, tokenizer), 128)
    assert len(rows) == 20 and all(len(one) <= 128 for one in rows)
    documents = rows[:16]
    assert all(len(one.supervised) == len(one) - 1 for one in documents)
    assert all(0 < len(one.supervised) < len(one) for one in (rows[16], rows[18]))
