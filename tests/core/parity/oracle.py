"""Tiny random-weight references from the transformers library, and the way of their weights into polyphi.

Rules that make the reference valid: eager attention (under sdpa and flash its vision tower is causal), one clip per
call (its audio mask is added to the scores instead of hiding keys), pixels and log-mel frames given directly, every
parameter filled (separators and LoRA B start at zero).
"""

import re
import warnings
from dataclasses import replace

import torch
import transformers
from torch import Tensor, nn

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.inputs.image import ImageInput, ImageLayout

LINEARS = r"model\.layers\.\d+\.((self_attn\.(qkv|o)_proj)|(mlp\.(gate_up|down)_proj))"

RENAMES = [
    (r"\.base_layer\.weight$", ".weight"),
    (r"\.lora_A\.(\w+)\.weight$", r".lora.\1.a"),
    (r"\.lora_B\.(\w+)\.weight$", r".lora.\1.b"),
    (
        r"^model\.embed_tokens_extend\.image_embed\.img_processor\.(embeddings\.|encoder\.)?",
        "vision.encoder.",
    ),
    (
        r"^model\.embed_tokens_extend\.image_embed\.global_img_feature_extensor$",
        "vision.projector.global_separator",
    ),
    (
        r"^model\.embed_tokens_extend\.image_embed\.sub_img_feature_extensor$",
        "vision.projector.row_separator",
    ),
    (r"^model\.embed_tokens_extend\.image_embed\.img_projection_", "vision.projector."),
    (
        r"^model\.embed_tokens_extend\.audio_embed\.(up|down)_proj_for_speech",
        r"audio.projector.speech.\1",
    ),
    (
        r"^model\.embed_tokens_extend\.audio_embed\.(up|down)_proj_for_vision_speech",
        r"audio.projector.vision.\1",
    ),
    (r"^model\.embed_tokens_extend\.audio_embed\.encoder\.", "audio.encoder."),
    (r"^audio\.encoder\.encoder_embedding\.", "audio.encoder."),
    (r"^audio\.encoder\.embed\.", "audio.encoder.subsampling."),
    (
        r"^audio\.encoder\.relative_attention_bias_layer\.bias_values\.",
        "audio.encoder.relative_attention_bias.",
    ),
    (r"^audio\.encoder\.encoders\.", "audio.encoder.blocks."),
    (r"^(audio\.encoder\..*feed_forward_(in|out))\.gate_up_proj\.", r"\1.value_gate_proj."),
    (r"^model\.", "decoder."),
]


def our_name(name: str) -> str:
    """The name polyphi gives a reference tensor."""
    for pattern, ours in RENAMES:
        name = re.sub(pattern, ours, name)
    return name


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, feature statistics included. Matrices keep the size of what passes through them, so
    that positions, distances and neighbours show in the result: at the usual 0.02 all frames of a clip come out alike.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.1 * noise)
            else:
                p.copy_(noise * (p[0].numel() ** -0.5 if p.dim() > 1 else 0.1))
        for name, b in model.named_buffers():
            if name.endswith("global_mean"):
                b.copy_(8 + torch.randn(b.shape, generator=g))
            if name.endswith("global_invstd"):
                b.copy_(0.3 + 0.05 * torch.rand(b.shape, generator=g))
    return model.eval()


def language(config: ModelConfig) -> dict:
    """The decoder's part of a reference configuration."""
    d = config.decoder
    return dict(
        vocab_size=d.vocab_size,
        hidden_size=d.hidden_size,
        intermediate_size=d.intermediate_size,
        num_hidden_layers=d.num_hidden_layers,
        num_attention_heads=d.num_attention_heads,
        num_key_value_heads=d.num_key_value_heads,
        max_position_embeddings=d.max_position_embeddings,
        original_max_position_embeddings=d.original_max_position_embeddings,
        rms_norm_eps=d.rms_norm_eps,
        rope_theta=d.rope_theta,
        partial_rotary_factor=d.partial_rotary_factor,
        rope_scaling={
            "type": "longrope",
            "short_factor": list(d.short_factor),
            "long_factor": list(d.long_factor),
        },
        sliding_window=d.sliding_window,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )


def mini(config: ModelConfig) -> "transformers.Phi3ForCausalLM":
    """The reference language model."""
    return fill(
        transformers.Phi3ForCausalLM(
            transformers.Phi3Config(attn_implementation="eager", **language(config))
        )
    )


def multimodal(config: ModelConfig) -> "transformers.Phi4MultimodalForCausalLM":
    """The reference multimodal model with both LoRAs injected by PEFT."""
    import peft  # takes seconds, of every process that collects tests

    v, a = config.vision, config.audio
    vision = transformers.Phi4MultimodalVisionConfig(
        hidden_size=v.hidden_size,
        intermediate_size=v.intermediate_size,
        num_hidden_layers=v.num_hidden_layers,
        num_attention_heads=v.num_attention_heads,
        image_size=v.crop_size,
        crop_size=v.crop_size,
        patch_size=v.patch_size,
        image_token_id=v.image_token_id,
    )
    audio = transformers.Phi4MultimodalAudioConfig(
        hidden_size=a.hidden_size,
        intermediate_size=a.intermediate_size,
        num_blocks=a.num_blocks,
        num_attention_heads=a.num_attention_heads,
        ext_pw_out_channel=a.ext_pw_out_channel,
        depthwise_separable_out_channel=a.depthwise_separable_out_channel,
        nemo_conv_channels=a.nemo_conv_channels,
        bias_max_distance=a.bias_max_distance,
        audio_token_id=a.audio_token_id,
    )
    whole = transformers.Phi4MultimodalConfig(
        vision_config=vision, audio_config=audio, **language(config)
    )
    model = transformers.Phi4MultimodalForCausalLM._from_config(whole, attn_implementation="eager")
    for name, adapter in config.adapters.items():
        lora = peft.LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=LINEARS,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Already found a `peft_config`"
            )  # two adapters are the point
            peft.inject_adapter_in_model(lora, model, name)
    return fill(model)


def use(model: nn.Module, adapter: str | None) -> None:
    """Switch the reference's LoRA; None is the bare language model."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(adapter is not None)
            if adapter:
                module.set_adapter(adapter)


def ours(reference: nn.Module, config: ModelConfig) -> PhiModel:
    """polyphi's model with the reference's weights, every tensor accounted for."""
    if isinstance(reference, transformers.Phi3ForCausalLM):
        config = replace(config, vision=None, audio=None, adapters={})
    model = PhiModel(config)
    target = model.state_dict()
    state = {our_name(n): t for n, t in reference.state_dict().items() if n != "lm_head.weight"}
    assert state.keys() == target.keys(), sorted(state.keys() ^ target.keys())
    model.load_state_dict(
        {name: tensor.reshape(target[name].shape) for name, tensor in state.items()}
    )
    return model.eval()


def picture(
    config: ModelConfig, crops: tuple[int, int], valid: tuple[int, int], seed: int
) -> tuple[Tensor, Tensor, ImageLayout]:
    """(crops, masks, layout) of a picture of `crops` rows and columns, of `valid` patch rows and columns."""
    v = config.vision
    (rows, cols), g = crops, v.grid
    count = rows * cols
    pixels = torch.randn(
        1 + count, 3, v.crop_size, v.crop_size, generator=torch.Generator().manual_seed(seed)
    )
    full = torch.zeros(g * rows, g * cols, dtype=torch.bool)
    full[: valid[0], : valid[1]] = True
    masks = full.view(rows, g, cols, g).transpose(1, 2).reshape(count, g, g)
    masks = torch.cat([torch.ones(1, g, g, dtype=torch.bool), masks])
    return pixels, masks, ImageLayout(rows, cols, -(-valid[0] // 2), -(-valid[1] // 2))


def mels(frames: int, seed: int) -> Tensor:
    """Log-mel frames [F 80] of the size that speech has."""
    return 8 + 3 * torch.randn(frames, 80, generator=torch.Generator().manual_seed(seed))


def request(
    config: ModelConfig,
    *,
    pictures: tuple = (),
    clips: tuple[Tensor, ...] = (),
    adapter: str | None = None,
    text: tuple[int, ...] = (30, 31, 32, 33),
) -> Batch:
    """One sequence: two tokens, all pictures, all clips, then the text."""
    v, a = config.vision, config.audio
    ids, image_slots, audio_slots = [20, 21], [], []
    for *_, layout in pictures:
        n = layout.tokens(v.cells)
        image_slots += range(len(ids), len(ids) + n)
        ids += [v.image_token_id] * n
    clip_layouts = tuple(AudioLayout(len(m), "vision" if pictures else "speech") for m in clips)
    for clip in clip_layouts:
        audio_slots += range(len(ids), len(ids) + clip.tokens)
        ids += [a.audio_token_id] * clip.tokens
    inputs: list[Inputs] = []
    if pictures:
        inputs.append(
            ImageInput(
                layouts=tuple(layout for *_, layout in pictures),
                slots=torch.tensor(image_slots),
                crops=torch.cat([p for p, _, _ in pictures]),
                masks=torch.cat([m for _, m, _ in pictures]),
            )
        )
    if clips:
        slots, mels = torch.tensor(audio_slots), torch.cat(clips)
        inputs.append(AudioInput(layouts=clip_layouts, slots=slots, mels=mels))
    return row([*ids, *text], *inputs, adapter=adapter)


@torch.no_grad()
def reference_logits(model: nn.Module, config: ModelConfig, batch: Batch) -> Tensor:
    """[T V] of the reference for one sequence with at most one clip."""
    use(model, batch.adapters[0])
    inputs: dict = {}
    if (images := batch.of(ImageInput)) is not None:
        layouts, size = images.layouts, config.vision.crop_size
        counts = [layout.crops for layout in layouts]
        pixels = torch.zeros(len(layouts), max(counts), *images.crops.shape[1:])
        masks = torch.ones(len(layouts), max(counts), *images.masks.shape[1:])
        for i, (p, m) in enumerate(
            zip(images.crops.split(counts), images.masks.split(counts), strict=True)
        ):
            pixels[i, : len(p)], masks[i, : len(p)] = p, m.float()
        sizes = torch.tensor([[size * x.crop_rows, size * x.crop_cols] for x in layouts])
        inputs |= dict(image_pixel_values=pixels, image_sizes=sizes, image_attention_mask=masks)
    if (audio := batch.of(AudioInput)) is not None:
        assert len(audio.layouts) == 1, "the reference's mask for several clips is wrong"
        inputs |= dict(
            audio_input_features=audio.mels[None], audio_embed_sizes=torch.tensor(audio.tokens)
        )
    return model(batch.ids[None], use_cache=False, **inputs).logits[0]
