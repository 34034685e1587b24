"""transformers' own classes in bfloat16 or float32, with the matrices that ours has.

    python transformers_phi.py THREADS LAYERS WHAT PRECISION

LAYERS: all, 8 (of every tower) or 8-decoder (of the decoder alone); WHAT: language or multimodal; PRECISION: bf16 or
fp32, which sidebyside.py chooses. float32 weights have bfloat16's values.

The language model is Phi3ForCausalLM; the multimodal one Phi4MultimodalForCausalLM with both adapters put in by PEFT,
fed by the library's own image processor and feature extractor. Attention is the library's default. Placeholders stand
in the prompt as our template has them, since there is no tokenizer of that size to load.
"""

import io
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import engine
import numpy as np
import soundfile
import torch
from PIL import Image as Picture
from turns import take_turns

from polyphi.checkpoints.processor import make_processor
from polyphi.devices.precision import DTYPES
from polyphi.model.multimodal import PhiModel
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text

ADAPTED = r"model\.layers\.\d+\.(?:self_attn\.(?:qkv|o)_proj|mlp\.(?:gate_up|down)_proj)"


class Language:
    def __init__(self, layers: str, dtype: torch.dtype = torch.bfloat16) -> None:
        config = engine.language(engine.Size().at(layers).config)
        self.vocabulary = config.decoder.vocab_size
        self.model = engine.peer_decoder(engine.random_model(config, dtype), dtype)

    def run(self, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits [S V] behind ids [S T], and the cache."""
        out = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True)
        # The last rows by themselves: of `logits_to_keep=1` and weights without gradients, as here, torch 2.13
        # computes a product over a view with odd strides, which takes 58 times as long. A model as it is loaded
        # doesn't take that path, so this comparison avoids it too.
        last = out.last_hidden_state[:, -1].contiguous()
        return self.model.lm_head(last).float(), out.past_key_values

    @torch.inference_mode()
    def prefill(self, ids: np.ndarray) -> np.ndarray:
        return self.run(torch.from_numpy(ids)[None])[0][0].numpy()

    logits = prefill

    @torch.inference_mode()
    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        cache = self.run(torch.from_numpy(prompts))[1]
        steps = torch.from_numpy(more)
        start = time.perf_counter()
        for i in range(more.shape[1]):
            self.run(steps[:, i : i + 1], cache)
        return time.perf_counter() - start


def multimodal(model: PhiModel) -> Any:
    """Phi4MultimodalForCausalLM with its adapters, on the same tensors."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import (
        Phi4MultimodalAudioConfig,
        Phi4MultimodalConfig,
        Phi4MultimodalForCausalLM,
        Phi4MultimodalVisionConfig,
    )

    c = model.config
    assert c.vision is not None and c.audio is not None
    with torch.device("meta"):
        peer = Phi4MultimodalForCausalLM(
            Phi4MultimodalConfig(
                vision_config=Phi4MultimodalVisionConfig(**engine.vision_options(c.vision)),
                audio_config=Phi4MultimodalAudioConfig(**engine.audio_options(c.audio)),
                **engine.decoder_options(c.decoder),
            )
        )
        for name, adapter in c.adapters.items():
            lora = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=ADAPTED)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                inject_adapter_in_model(lora, peer, name)
    state = {peft_name(name): tensor for name, tensor in engine.public(model, "native").items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    peer.load_state_dict(state, assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(
        peer.config
    )  # its tables are in no checkpoint
    left = [
        name for name, tensor in (*peer.named_buffers(), *peer.named_parameters()) if tensor.is_meta
    ]
    assert not left, left
    return peer.eval().requires_grad_(False)


def peft_name(name: str) -> str:
    """A tensor of the native layout by the name that it has in a model with adapters."""
    if match := re.fullmatch(r"(\w+)-lora/(.*)\.(lora_[AB])\.weight", name):
        return f"{match[2]}.{match[3]}.{match[1]}.weight"
    return re.sub(f"({ADAPTED})\\.weight", r"\1.base_layer.weight", name)


def use(peer: Any, adapter: str) -> None:
    """Switch to one of the adapters."""
    from peft.tuners.lora import LoraLayer

    for module in peer.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(adapter)


class Multimodal:
    def __init__(self, layers: str, dtype: torch.dtype = torch.bfloat16) -> None:
        from transformers.models.phi4_multimodal.feature_extraction_phi4_multimodal import (
            Phi4MultimodalFeatureExtractor,
        )
        from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import (
            Phi4MultimodalImageProcessor,
        )

        config, tokenizer = engine.endless(engine.Size().at(layers).config)
        self.vocabulary = config.decoder.vocab_size
        self.processor = make_processor(config, tokenizer)
        self.look, self.listen = Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor()
        self.dtype = dtype
        self.model = multimodal(engine.random_model(config, dtype))
        self.encoding = 0.0
        began = [0.0]
        media = self.model.model.embed_tokens_extend
        for part in (media.image_embed, media.audio_embed):
            part.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.perf_counter()))
            part.register_forward_hook(lambda *_: self.add(time.perf_counter() - began[0]))

    def add(self, seconds: float) -> None:
        self.encoding += seconds

    @torch.inference_mode()
    def first(self, kind: str, file: Path) -> dict[str, float]:
        data = file.read_bytes()
        media = Image(data) if kind == "picture" else Audio(data)
        ids = self.processor.row(
            [Message.user(media, Text(engine.QUESTION))], generation_prompt=True
        ).ids[None]
        use(self.model, "vision" if kind == "picture" else "speech")
        self.encoding = 0.0
        start = time.perf_counter()
        if kind == "picture":
            seen = self.look(Picture.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")
            seen.pop("num_img_tokens")
            media_inputs = dict(seen)
            media_inputs["image_pixel_values"] = media_inputs["image_pixel_values"].to(self.dtype)
        else:
            wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
            media_inputs = dict(self.listen(wave, sampling_rate=rate, return_tensors="pt"))
            media_inputs["audio_input_features"] = media_inputs["audio_input_features"].to(
                self.dtype
            )
        read = time.perf_counter() - start
        out = self.model.model(input_ids=ids, use_cache=True, **media_inputs)
        self.model.lm_head(out.last_hidden_state[:, -1].contiguous()).argmax(-1).item()
        whole = time.perf_counter() - start
        return {
            "seconds": whole,
            "media": read,
            "encoders": self.encoding,
            "prefill": whole - read - self.encoding,
            "tokens": ids.shape[1],
        }


if __name__ == "__main__":
    threads, layers, what, name = sys.argv[1:]
    torch.set_num_threads(int(threads))
    side = Language if what == "language" else Multimodal
    take_turns(side(layers, DTYPES[name]))
