"""Quantized models: a token's result doesn't depend on its neighbours, and is close to that of unquantized weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from polyphi import kernels
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.kernels.linear import numbers
from polyphi.model.adapters import add_adapter
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.linear import product, swiglu
from polyphi.prepared.memory import model_bytes
from polyphi.prepared.prepare import prepare
from polyphi.quantization import integer_weights
from polyphi.quantization import quantize as quantized
from polyphi.quantization.integer_weights import (
    EIGHT,
    FOUR,
    LEVELS,
    PER_OUTPUT,
    SIX,
    Form,
    Int4Pack,
    IntMm,
    OneDnn,
    Plain,
    Quantized,
    per_token,
    pieces,
)
from polyphi.quantization.quantize import quantize
from polyphi.types.batch import pack, row
from polyphi.types.inputs.audio import AudioLayout
from tests.fixtures.tensors import noise


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


def filled(config: ModelConfig) -> PhiModel:
    """A model with nonzero adapters."""
    model = PhiModel(config)
    model.initialise(0)
    for name, p in model.named_parameters():
        if name.endswith(".b"):
            p.copy_(0.05 * noise(*p.shape, seed=1))
    return prepare(model).eval()


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def test_a_kernel_with_only_a_reference_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As oneDNN's for signed activations on CPUs without AMX: exact, and a thousand times slower."""
    monkeypatch.setattr(
        integer_weights, "_seconds", lambda kernel, _: 1e3 if kernel is OneDnn else 1.0
    )
    monkeypatch.setattr(integer_weights, "is_right", lambda kernel, device: True)
    assert integer_weights._kernel.__wrapped__("cpu") is IntMm
    monkeypatch.setattr(integer_weights, "is_right", lambda kernel, device: False)
    assert integer_weights._kernel.__wrapped__("cpu") is Plain


def integer_errors(kernel: type) -> torch.Tensor:
    """Relative errors of a kernel's product of random integers over the range of int8."""
    q, w = ((127 * noise(n, 96, seed=n).clamp(-1, 1)).to(torch.int8) for n in (5, 64))
    scale = torch.linspace(0.5, 2, 64)
    expected = (q.double() @ w.double().t()) * scale.double()
    return (kernel(w, scale)(q, torch.float32).double() - expected).abs() / expected.abs()


@pytest.mark.parametrize("kernel", [OneDnn, IntMm, Plain])
def test_a_kernel_adds_integers_or_is_passed_over(
    kernel: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On x86 CPUs without VNNI oneDNN adds pairs of products in 16 bits, and large sums saturate."""
    monkeypatch.setattr(integer_weights, "_seconds", lambda kernel, _: 1.0)
    if kernel is Plain or integer_weights.is_right(kernel, "cpu"):
        assert integer_errors(kernel).max() < 1e-6
    else:
        assert integer_weights._kernel.__wrapped__("cpu") is not kernel


def test_the_chosen_kernel_adds_integers() -> None:
    assert integer_errors(integer_weights._kernel("cpu")).max() < 1e-6


def test_a_kernel_whose_sums_saturate_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulates a CPU without VNNI: unsigned times signed, sums of pairs saturate at 16 bits."""

    def saturating(self: IntMm, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pairs = (q.int() + 128)[:, None] * self.weight.int()
        sums = pairs.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2)
        return ((sums - 128 * self.weight.int().sum(1)) * self.scale).to(dtype)

    monkeypatch.setattr(integer_weights, "_seconds", lambda kernel, _: 1.0)
    for kernel in (OneDnn, IntMm):
        monkeypatch.setattr(kernel, "__init__", IntMm.__init__)
        monkeypatch.setattr(kernel, "__call__", saturating)
        assert integer_errors(kernel).max() > 0.1 and not integer_weights.is_right(kernel, "cpu")
    assert integer_weights._kernel.__wrapped__("cpu") is Plain


def test_the_largest_value_of_a_token_stays_within_int8() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = noise(500, 40, dtype=dtype) * torch.logspace(-6, 6, 500).to(dtype)[:, None]
        q, scale = per_token(x)
        assert q.abs().amax(1).eq(127).all()
        assert error(q.float() * scale.float(), x) < 0.01
    q, scale = per_token(torch.zeros(2, 8))
    assert not q.any() and scale.isfinite().all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 0.0), (torch.bfloat16, 3e-3)])
def test_eight_bits_are_close(dtype: torch.dtype, rounding: float) -> None:
    w, x = noise(64, 320, dtype=dtype), noise(7, 320, seed=1, dtype=dtype)
    for form, most in ((EIGHT, 0.01), (PER_OUTPUT, 0.015), (SIX, 0.03)):
        y = Quantized(w, form)(x)
        assert y.dtype == dtype
        assert error(y, x.double() @ w.double().t()) < most + rounding


@pytest.mark.parametrize("form", [FOUR, SIX, EIGHT])
def test_a_massive_activation_affects_its_block_alone(form: Form) -> None:
    """Trained models have activations a thousand times as large as the others."""
    w, x = noise(64, 640), noise(7, 640, seed=1)
    x[:, 33] = 3000
    w[:, :64] = 0
    assert (
        error(Quantized(w, form)(x), x.double() @ w.double().t())
        < {4: 0.1, 6: 0.03, 8: 0.01}[form.bits]
    )


@pytest.fixture(params=["native", "torch"])
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the product is by our kernel, or by torch's without it."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "missing", lambda: "no compiler")
    elif reason := kernels.missing():
        pytest.skip(reason)
    return request.param == "native"


def test_weights_on_the_grid_of_int8_are_exact() -> None:
    eight = torch.randint(-126, 127, (64, 96), generator=torch.Generator().manual_seed(0)).float()
    eight[:, 0] = 127
    x = torch.eye(96)[:5] * 127
    torch.testing.assert_close(Quantized(eight, PER_OUTPUT)(x), x @ eight.t(), rtol=1e-5, atol=1e-3)


def test_weights_on_the_grid_of_int4_are_exact(ours: bool) -> None:
    """Activations of 1 and 0 are nearly exact in int8."""
    four = torch.randint(0, 16, (64, 96), generator=torch.Generator().manual_seed(0)).float()
    four[:, ::32], four[:, 1::32] = 0, 15
    x = torch.eye(96)
    torch.testing.assert_close(Quantized(four, LEVELS)(x), x @ four.t(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("form", "most"), [(FOUR, 0.12), (SIX, 0.03), (EIGHT, 0.015)])
@pytest.mark.parametrize("inputs", [64, 96])
def test_rotated_weights_are_close(ours: bool, form: Form, most: float, inputs: int) -> None:
    w, x = noise(128, inputs), noise(9, inputs, seed=1, dtype=torch.bfloat16)
    assert error(Quantized(w, form)(x), x.double() @ w.double().t()) < most


@pytest.mark.parametrize("tokens", [9, integer_weights.UNPACK])
def test_four_bits_of_torch_are_close_at_any_number_of_tokens(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """The byte layout of torch's kernel depends on the CPU: blocks of 64 outputs with AVX-512, smaller ones with AVX2.
    Weights are unpacked for many tokens only if the layout is the expected one."""
    monkeypatch.setattr(kernels, "missing", lambda: "no compiler")
    weight, x = noise(128, 64), noise(tokens, 64, seed=1, dtype=torch.bfloat16)
    w, packed = Quantized(weight, FOUR), pieces(weight, FOUR)["r4"]
    assert isinstance(w.product, Int4Pack)
    exact = numbers(packed, w.row, 64, torch.float32, bits=4, rotated=True).double()
    # Scales, zeros and the result are rounded to bfloat16.
    assert error(w(x), x.double() @ exact.t()) < 6e-3


def test_four_bits_are_unpacked_only_in_the_expected_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "missing", lambda: "no compiler")
    unpacked: list[int] = []
    unpack = Int4Pack.unpacked
    monkeypatch.setattr(Int4Pack, "unpacked", lambda self: (unpacked.append(1), unpack(self))[1])
    w = Quantized(noise(128, 64), FOUR)
    x = noise(integer_weights.UNPACK, 64, seed=1, dtype=torch.bfloat16)
    assert isinstance(w.product, Int4Pack)
    many, few = w(x), w(x[:9])
    assert len(unpacked) == (w.product.rows is not None)
    assert error(many[:9], few) < 5e-3
    w.product.rows = None  # another layout
    assert torch.equal(w(x)[:9], few) and len(unpacked) <= 1


@pytest.mark.parametrize("form", [EIGHT, SIX, FOUR])
def test_a_token_does_not_depend_on_its_neighbours(form: Form) -> None:
    w, x = Quantized(noise(64, 96), form), noise(40, 96, seed=1, dtype=torch.bfloat16)
    x[3] *= 1000  # a shared scale would round the others to zero
    batched = w(x)
    for i in (0, 3, 17, 39):
        assert torch.equal(w(x[i : i + 1])[0], batched[i])


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [EIGHT, FOUR, LEVELS])
@pytest.mark.parametrize("tokens", [1, 40, 200])
def test_a_fused_product_equals_its_parts(dtype: torch.dtype, form: Form, tokens: int) -> None:
    base = Quantized(noise(128, 64), form)
    down, up = (Quantized(noise(*shape), EIGHT) for shape in ((9, 64), (128, 9)))
    x, onto = (noise(tokens, n, seed=n, dtype=dtype) for n in (64, 128))
    adapted = base(x) + 0.5 * up(down(x))
    tolerance = 3e-5 if dtype == torch.float32 else 1e-2
    for pair, y in ((None, base(x)), ((down, up, 0.5), adapted)):
        most = 0 if pair is None else tolerance
        for onto_, gated, expected in (
            (None, False, y),
            (onto, False, onto + y),
            (None, True, swiglu(y)),
        ):
            result = base.fused(x, pair, onto_, gated)
            assert result.dtype == dtype and error(result, expected) <= most


def test_unsupported_products_are_not_fused() -> None:
    base, down, up = (Quantized(noise(o, i), EIGHT) for o, i in ((96, 64), (9, 64), (96, 9)))
    x = noise(5, 64)
    assert base.fused(x, None, None, True) is None  # halves of 48
    assert base.fused(x.half(), None, None, False) is None
    up.product = integer_weights.PerToken(Plain(noise(96, 9).clamp(-9, 9).to(torch.int8), up.row))
    assert base.fused(x, (down, up, 1.0), None, False) is None


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-all", "int4-all"])
def test_mixed_batches_equal_single_ones(tiny_config: ModelConfig, scheme: str) -> None:
    model = quantize(filled(tiny_config), scheme)
    rows = [
        row(list(range(20, 20 + n)), adapter=adapter)
        for n, adapter in ((7, "vision"), (1, None), (12, "speech"), (5, "vision"))
    ]
    batched = model.logits(model(pack(rows)))
    # Adapters add in another order in a batch, so that an activation halfway between two levels of int8 may be rounded
    # to the other one: 1e-3 of the result, on some CPUs. int4 computes in bfloat16. Another adapter changes a tenth.
    tolerance = 5e-3 if scheme.startswith("int8") else 2e-2
    for one, part in zip(rows, batched.split([len(r) for r in rows]), strict=True):
        alone = model.logits(model(one))
        assert error(part, alone) < tolerance, one.adapters


@pytest.mark.parametrize(
    ("scheme", "most"), [("int8", 0.04), ("int4", 0.25), ("int8-all", 0.05), ("int4-all", 0.25)]
)
def test_adapters_still_act(tiny_config: ModelConfig, scheme: str, most: float) -> None:
    whole, model = filled(tiny_config), quantize(filled(tiny_config), scheme)
    for adapter in (None, "speech"):
        batch = row(list(range(20, 60)), adapter=adapter)
        assert error(model.logits(model(batch)), whole.logits(whole(batch))) < most
    bare, spoken = (model(row([20, 21], adapter=a)) for a in (None, "speech"))
    assert error(bare, spoken) > 0.05


def test_base_weights_are_removed_and_others_unchanged(tiny_config: ModelConfig) -> None:
    whole, model = filled(tiny_config), quantize(filled(tiny_config), "int8")
    before, after = whole.state_dict(), model.state_dict()
    removed = {n for n in before if n.endswith("_proj.weight") and n.startswith("decoder.layers.")}
    assert before.keys() - after.keys() == removed and len(removed) == 8
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name])


def encoder_outputs(model: PhiModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoders' outputs for two crops and two clips."""
    crops, masks = noise(2, 3, 56, 56), torch.ones(2, 4, 4, dtype=torch.bool)
    masks[1, 2:] = False
    mels, clips = 8 + 3 * noise(300, 80), (AudioLayout(180, "speech"), AudioLayout(120, "speech"))
    return model.vision.encoder(crops, masks), model.audio.encoder(mels, clips)


@pytest.mark.parametrize("scheme", ["bf16", "int8"])
def test_encoders_in_the_cpus_layout_compute_the_same(
    tiny_config: ModelConfig, scheme: str
) -> None:
    whole, model = (filled(tiny_config).bfloat16() for _ in range(2))
    quantize(model, scheme)
    packed = any(isinstance(m, quantized.OneDnnLinear) for m in model.audio.modules())
    assert packed == quantized._packs(), "packed if oneDNN has bfloat16 kernels"
    pairs = zip(encoder_outputs(model), encoder_outputs(whole), strict=True)
    for result, expected in pairs:
        assert error(result, expected) < 0.02


def test_int8_all_includes_encoders_projectors_and_adapters(
    tiny_config: ModelConfig,
) -> None:
    whole, model = (filled(tiny_config).bfloat16() for _ in range(2))
    quantize(model, "int8-all")
    matrices = {
        name
        for name, p in model.named_parameters()
        if name.endswith(("weight", ".a", ".b")) and p.dim() > 1 and p.shape[-1] > 1
    }
    rest = {n for n in matrices if n not in model.unused() and "embed" not in n}
    assert {n.split(".")[0] for n in rest} <= {"vision", "audio"}
    assert not any("_proj.weight" in n or ".lora." in n or "projector" in n for n in rest)
    pairs = zip(encoder_outputs(model), encoder_outputs(whole), strict=True)
    for result, expected in pairs:
        assert 1e-3 < error(result, expected) < 0.03


def test_one_row_equals_a_matrix_product() -> None:
    w, x = noise(64, 256, dtype=torch.bfloat16), noise(1, 256, seed=1, dtype=torch.bfloat16)
    torch.testing.assert_close(product(x, w), F.linear(x, w), atol=0.1, rtol=1e-2)
    assert product(x[0], w).shape == (64,) and product(x, w).shape == (1, 64)


@pytest.mark.parametrize("scheme", ["int8", "int4", "bf16"])
def test_loading_with_quant_equals_quantizing_after_loading(
    tiny_config: ModelConfig, tmp_path: Path, scheme: str
) -> None:
    whole = filled(tiny_config).bfloat16()
    save_checkpoint(whole, tmp_path / "model")
    quantize(whole, scheme)
    loaded = load_checkpoint(tmp_path / "model", quant=scheme)
    batch = row(list(range(20, 50)), adapter="speech")
    assert torch.equal(loaded.logits(loaded(batch)), whole.logits(whole(batch)))
    assert loaded.quant == scheme
    with pytest.raises(ValueError, match="quant="):
        save_checkpoint(loaded, tmp_path / "again")
    with pytest.raises(ValueError, match="quantized"):
        add_adapter(loaded, "mine", "speech")
    with pytest.raises(ValueError, match="already"):
        quantize(loaded, "int8")


def test_unknown_schemes_raise(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int3"):
        quantize(filled(tiny_config), "int3")
    save_checkpoint(filled(tiny_config), tmp_path / "model")
    with pytest.raises(ValueError, match="int3"):
        load_checkpoint(tmp_path / "model", quant="int3")


@pytest.mark.parametrize("scheme", [None, "bf16", "int8", "int4"])
def test_saved_bytes_equal_the_change_in_memory(scheme: str | None) -> None:
    d = DecoderConfig(vocab_size=64, hidden_size=1536, num_hidden_layers=1, num_attention_heads=12)
    config = ModelConfig(replace(d, num_key_value_heads=4, intermediate_size=512), None, None, {})
    model = PhiModel(config).bfloat16()
    model.initialise(0)

    before = model_bytes(model)
    if scheme:
        quantize(model, scheme)
    saved = quantized.saved_bytes(config, scheme)
    # torch's product in 4 bits, where our kernels are missing, has 4 bytes for a group's scale and zero instead of 2.
    tolerance = 0.02 if kernels.missing() is None or scheme != "int4" else 0.05
    assert before - model_bytes(model) == pytest.approx(saved, rel=tolerance)
    table = 2 * 64 * 1536 if scheme in ("int8", "int4") else 0
    wider = 2 * table // 16 if scheme == "int4" else 0
    lost = saved - quantized.saved_bytes(config, scheme, "cuda")
    assert lost == table + wider, "the table isn't mapped there, and a head in 6 bits has 8"
