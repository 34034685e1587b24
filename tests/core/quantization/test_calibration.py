"""Hessians of calibration, and a model that is quantized with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.config import ModelConfig
from polyphi.model.lora import LoraLinear
from polyphi.model.multimodal import PhiModel
from polyphi.quantization.calibration import calibrate
from polyphi.quantization.integer_weights import FOUR
from polyphi.quantization.quantize import quantize
from polyphi.types.batch import Batch, pack, row
from tests.fixtures.engines import random_model


@pytest.fixture
def model(tiny_config: ModelConfig) -> PhiModel:
    return random_model(tiny_config, 0.15)


def texts(number: int, seed: int, adapter: str | None = None) -> list[Batch]:
    """Rows of tokens from a small part of the vocabulary."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, 60, (number, 50), generator=draw).tolist()
    return [row(one, adapter=adapter) for one in ids]


def test_each_linear_is_put_with_the_sum_over_its_inputs(model: PhiModel) -> None:
    rows = [*texts(3, 0), *texts(2, 1, "speech")]
    inputs: dict[str, list[Tensor]] = {}
    linears = {n: m for n, m in model.decoder.named_modules() if isinstance(m, LoraLinear)}
    hooks = [
        m.register_forward_pre_hook(lambda _, x, n=n: inputs.setdefault(n, []).append(x[0]))
        for n, m in linears.items()
    ]
    with torch.no_grad():
        last = model(pack(rows))
    for hook in hooks:
        hook.remove()
    names = {m: n for n, m in linears.items()}
    put: dict[str, Tensor] = {}
    calibrate(model, rows, lambda linear, total: put.update({names[linear]: total}))
    assert list(put) == list(linears)
    for name, total in put.items():
        x = torch.cat(inputs[name])
        torch.testing.assert_close(total, x.t() @ x, rtol=1e-3, atol=1e-2)
    with torch.no_grad():  # the model is unchanged
        torch.testing.assert_close(model(pack(rows)), last)


def test_later_layers_get_the_outputs_of_changed_earlier_ones(model: PhiModel) -> None:
    order = [m for m in model.decoder.modules() if isinstance(m, LoraLinear)]
    whole: dict[LoraLinear, Tensor] = {}
    after: dict[LoraLinear, Tensor] = {}
    calibrate(model, texts(2, 0), whole.__setitem__)

    def put(linear: LoraLinear, total: Tensor) -> None:
        after[linear] = total
        linear.weight.zero_()

    calibrate(model, texts(2, 0), put)
    for linear in order[:4]:
        assert torch.equal(whole[linear], after[linear])
    for linear in order[4:]:
        assert not torch.equal(whole[linear], after[linear])


@pytest.mark.parametrize("adapter", [None, "vision"])
def test_a_calibrated_model_is_nearer_to_the_whole_one(
    model: PhiModel, tiny_config: ModelConfig, adapter: str | None
) -> None:
    unseen, errors = texts(6, 9, adapter), []
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = torch.cat([model.logits(model(one)) for one in unseen])
    for rows in ((), texts(20, 0, adapter)):
        again = PhiModel(tiny_config).eval()
        again.load_state_dict(state)
        quantize(again, "int4", rows)
        with torch.no_grad():
            logits = torch.cat([again.logits(again(one)) for one in unseen])
        errors.append(float((logits - expected).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_calibrated_linears_have_four_bits_and_adapters_stay(model: PhiModel) -> None:
    before = {n: p.clone() for n, p in model.named_parameters() if ".lora." in n}
    quantize(model, "int4", texts(2, 0))
    linears = [m for m in model.decoder.modules() if isinstance(m, LoraLinear)]
    fitting = [m for m in linears if m.kernel.shape[0] % 64 == 0]
    assert fitting and all(m.kernel.form == FOUR for m in fitting)
    assert all(m.weight is None for m in linears) and model.quant == "int4"
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_eight_bits_are_not_calibrated(model: PhiModel) -> None:
    with pytest.raises(ValueError, match="int8"):
        quantize(model, "int8", texts(2, 0))
    assert model.quant is None


def test_a_calibrated_checkpoint_is_the_calibrated_model(model: PhiModel, tmp_path: Path) -> None:
    rows, prompt = texts(4, 0), texts(1, 5)[0]
    model.bfloat16()
    save_checkpoint(model, tmp_path / "model", quant="int4", calibration=rows)
    loaded = load_checkpoint(tmp_path / "model")
    quantize(model, "int4", rows)
    for one, other in zip(
        (m for m in model.modules() if isinstance(m, LoraLinear)),
        (m for m in loaded.modules() if isinstance(m, LoraLinear)),
        strict=True,
    ):
        x = torch.randn(3, one.kernel.shape[1]).bfloat16()
        assert torch.equal(one.base(x), other.base(x))
    with torch.no_grad():
        hidden = loaded(prompt)
        assert torch.equal(model.logits(hidden), loaded.logits(hidden))


def test_calibration_needs_a_scheme(model: PhiModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantized"):
        save_checkpoint(model, tmp_path / "model", calibration=texts(2, 0))
