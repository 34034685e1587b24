"""vLLM on exports of polyphi, in float32 on a CPU.

    python exports_vllm.py PART FOLDER

FOLDER is what `interchange.py` wrote: `mini`, `native`, `original` and `requests.json`. PART: vllm-mini,
vllm-mini-lora, vllm-native, vllm-native-media, vllm-original or vllm-original-media. Prints one JSON object: the
version, and the greedy answers by the name of their request, or the error.

Microsoft's layout (`original`) comes with Python code beside the weights, which vLLM runs for the configuration and the
processor of its own Phi4MMForCausalLM. An export has no such code; for vllm-original-media the classes below take its
place, made of transformers' own processors.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

import soundfile
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    Phi3Config,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalImageProcessor,
    ProcessorMixin,
)
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


class Phi4MMConfig(Phi3Config):
    """The decoder's configuration; `embd_layer` and `audio_processor` are kept as they are."""

    model_type = "phi4mm"
    img_processor: Any = None


class Phi4MMProcessor(ProcessorMixin):
    """Microsoft's names of the inputs on transformers' processors."""

    def __init__(self, image_processor: Any, audio_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.audio_processor = image_processor, audio_processor
        self.tokenizer = tokenizer
        self.chat_template = None

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> "Phi4MMProcessor":
        return cls(
            Phi4MultimodalImageProcessor(),
            Phi4MultimodalFeatureExtractor(),
            AutoTokenizer.from_pretrained(folder),
        )

    def __call__(
        self, text: Any = None, images: Any = None, audios: Any = None, **_: Any
    ) -> BatchFeature:
        out = dict(self.tokenizer(text, return_tensors="pt"))
        out["image_sizes"] = torch.empty(0, 2, dtype=torch.long)  # vLLM reads it for audio too
        if images:
            seen = self.image_processor(images, return_tensors="pt")
            out["input_image_embeds"] = seen["image_pixel_values"]
            out |= {k: seen[k] for k in ("image_sizes", "image_attention_mask", "num_img_tokens")}
        if audios:
            waves, rates = zip(*audios, strict=True)
            clips = self.audio_processor(list(waves), sampling_rate=rates[0], return_tensors="pt")
            out["input_audio_embeds"] = clips["audio_input_features"]
        return BatchFeature(out)


def register() -> None:
    AutoConfig.register("phi4mm", Phi4MMConfig)
    AutoProcessor.register(Phi4MMConfig, Phi4MMProcessor)


def media_of(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    if request["kind"] == "image":
        image = Image.open(folder / request["media"]).convert("RGB")
        return {"multi_modal_data": {"image": [image]}}
    if request["kind"] == "audio":
        wave, rate = soundfile.read(folder / request["media"], dtype="float32")
        return {"multi_modal_data": {"audio": [(wave, rate)]}}
    return {}


def prompt_of(request: dict[str, Any], folder: Path, layout: str) -> dict[str, Any]:
    if request["kind"] == "text":
        return {"prompt_token_ids": request["ids"]}
    text = request["text"]
    if layout == "original":
        text = text.replace("<|endoftext10|>", "<|image_1|>").replace(
            "<|endoftext11|>", "<|audio_1|>"
        )
    return {"prompt": text, **media_of(request, folder)}


def answers(part: str, folder: Path, work: dict[str, Any]) -> dict[str, list[int]]:
    _, layout, *more = part.split("-")
    media, lora = more == ["media"], bool(more)
    if media and layout == "original":
        register()
    options: dict[str, Any] = {}
    if lora:
        options |= {"enable_lora": True, "max_lora_rank": 64, "max_loras": 1}
    if media:
        options |= {"skip_mm_profiling": True, "limit_mm_per_prompt": {"image": 1, "audio": 1}}
    config = json.loads((folder / layout / "config.json").read_text())
    llm = LLM(
        str(folder / layout),
        dtype="float32",
        enforce_eager=True,
        # With a longer one vLLM uses LongRoPE's long factors for short prompts too.
        max_model_len=config["original_max_position_embeddings"],
        max_num_seqs=2,
        **options,
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=work["max_tokens"], stop_token_ids=work["eos"]
    )
    results = {}
    names = ["", "vision", "speech", "third"]
    for request in work["requests"]:
        if request["kind"] != "text" and not media:
            continue
        if request["adapter"] and not lora:
            continue
        number = names.index(request["adapter"])
        adapter = folder / "native" / f"{request['adapter']}-lora"
        output = llm.generate(
            prompt_of(request, folder, layout),
            sampling,
            lora_request=LoRARequest(request["adapter"], number, str(adapter)) if number else None,
            use_tqdm=False,
        )
        ids = list(output[0].outputs[0].token_ids)
        results[request["name"]] = [id for id in ids if id not in work["eos"]]
    return results


def main() -> None:
    part, folder = sys.argv[1], Path(sys.argv[2])
    work = json.loads((folder / "requests.json").read_text())
    # the others are for llama.cpp
    work["requests"] = [r for r in work["requests"] if r["kind"] in ("text", "image", "audio")]
    report: dict[str, Any] = {"version": f"vllm-cpu {version('vllm-cpu')}"}
    try:
        report["answers"] = answers(part, folder, work)
    except Exception as error:  # whatever the library refuses with is the result
        import traceback

        traceback.print_exc()
        report["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(report))


if __name__ == "__main__":
    main()
