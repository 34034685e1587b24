"""What runs on a GPU, run on torch's meta device: its tensors have no values and no memory, so an operation that mixes
devices raises, and so does one that has to read a value back (on a GPU it would wait for all work in its queue, and
a CUDA graph couldn't record it)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from polyphi.engine.cache import BlockPool, BlockTable, Memory, StepCache
from polyphi.engine.graphs import DecodeGraphs
from polyphi.kernels.linear import Int4Weight
from polyphi.model.multimodal import PhiModel
from polyphi.prepared import decoder, multimodal
from polyphi.prepared.prepare import prepare
from polyphi.quantization import integer_weights
from polyphi.quantization.integer_weights import Int4Pack, Quantized
from polyphi.quantization.quantize import quantize_frozen
from polyphi.types.batch import Batch, pack
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from tests.core.train import small

META = torch.device("meta")


@pytest.fixture(autouse=True)
def cuda_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches that the code takes on a GPU; the attention of a whole pack is one kernel there."""

    def packed(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: object) -> Tensor:
        return q + 0 * (k.sum() + v.sum())

    monkeypatch.setattr(decoder, "packed_attention", packed)
    monkeypatch.setattr(multimodal, "equal_crops", lambda images: None)
    monkeypatch.setattr(integer_weights, "_native", lambda device: False)


def mixed_pack() -> tuple[PhiModel, Batch]:
    """A model whose weights all have a form in 4 bits, and a row of each modality in one pack."""
    processor, random = small.make_processor(), np.random.default_rng(0)
    config = small.make_model(processor).config
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    model = PhiModel(replace(config, decoder=replace(config.decoder, **sizes)))
    model.initialise(0)
    prepare(model)
    media = [[Image(small._png(random))], [Audio(small._wav(random))], []]
    rows = [
        processor.row(
            [Message.user(*parts, "red or blue"), Message.assistant("blue circle")],
            supervise="answers",
        )
        for parts in media
    ]
    return model, pack(rows)


def moved(model: PhiModel) -> PhiModel:
    """The model on the meta device, with its quantized weights."""
    for module in model.modules():
        for name in ("kernel", "head"):
            weight = getattr(module, name, None)
            if isinstance(weight, Quantized):
                assert weight.table is not None
                weight.table, weight.row = weight.table.to(META), weight.row.to(META)
    return model.to(META)


@pytest.mark.parametrize("base", [None, "int8", "int4"])
def test_forward_and_backward_stay_on_the_device(base: str | None) -> None:
    model, batch = mixed_pack()
    parts = (".lora.", "vision.projector.", "audio.projector.speech.")
    trained = [n for n, _ in model.named_parameters() if any(part in n for part in parts)]
    if base is not None:
        quantize_frozen(model, base, trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model = moved(model).train()
    batch = batch.to(META)
    assert batch.supervised is not None
    model.logits(model(batch).index_select(0, batch.supervised)).sum().backward()
    unused = model.unused()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {n for n in trained if n not in unused}


@pytest.mark.parametrize("inputs", [32, 64, 128, 192])
def test_a_product_in_4_bits_has_the_layout_of_the_kernel(inputs: int) -> None:
    """Nothing is padded but outputs: a number of 32 bits has eight weights."""
    q, s = (torch.empty(72, n, dtype=torch.uint8, device=META) for n in (inputs, inputs // 32))
    product = Int4Pack(Int4Weight(q, s, s), torch.empty(72, device=META), False)
    assert product.packed.numel() * 8 == 128 * inputs


def test_a_step_of_the_engine_stays_on_the_device() -> None:
    """Prompts of two sequences, one of which continues a cached prefix."""
    model, _ = mixed_pack()
    model = moved(model).eval()
    config, pool = model.config.decoder, BlockPool(8)
    memory = Memory(config, 8, torch.float32, META)
    tables = [BlockTable(pool), BlockTable(pool)]
    tables[0].grow(8)
    tables[0].length = 3
    tables[1].grow(4)
    ids = torch.arange(9, device=META)
    batch = Batch(ids, ids, (0, 5, 9), (8, 4), ("vision", None))
    with torch.no_grad():
        cache = StepCache(memory, tables, [5, 4])
        hidden = model.decoder(model.decoder.embed(ids), batch, cache)
        assert model.logits(hidden).device == META


def test_a_recorded_decode_step_stays_on_the_device() -> None:
    model, _ = mixed_pack()
    model = moved(model).eval()
    memory = Memory(model.config.decoder, 4, torch.float32, META)
    batch = Batch(torch.arange(4), torch.arange(4), tuple(range(5)), (1,) * 4, ("vision", None) * 2)
    with torch.no_grad():
        step, replay = DecodeGraphs(model, memory)._record(batch, 64)
        assert replay().shape == (4, model.config.decoder.vocab_size)
        assert step.ids.device == META
