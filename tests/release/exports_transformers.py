"""transformers, PEFT and TRL on exports of polyphi, in float32.

    python exports_transformers.py PART FOLDER

FOLDER is what `interchange.py` wrote: `mini`, `native`, and `requests.json`. PART: mini, native,
native-adapters, processor, peft-mini, peft-native, sft-lora or sft-full. Prints one JSON object: the version, and the
greedy answers by the name of their request; of a training also the folder that it wrote and a file of logits.

Attention is "eager": the library's default attention makes crops without padding causal.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile
import torch
import transformers
from peft import LoraConfig, PeftModel
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, AutoTokenizer, Phi3ForCausalLM, Phi4MultimodalForCausalLM

LINEARS = r".*model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
PAIRS = ("What is seven plus nine?", "sixteen"), ("Name three colours.", "red, green and blue")


def load(kind: Any, folder: Path) -> Any:
    """A model of class `kind`; every tensor must be in the checkpoint, and none too many."""
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def media_of(request: dict[str, Any], folder: Path, processor: Any) -> dict[str, Any]:
    """The inputs of a request's image or audio clip."""
    if request["kind"] == "image":
        image = Image.open(folder / request["media"]).convert("RGB")
        values = processor.image_processor([image], return_tensors="pt")
        return {k: v for k, v in values.items() if k != "num_img_tokens"}
    if request["kind"] == "audio":
        wave, rate = soundfile.read(folder / request["media"], dtype="float32")
        return dict(processor.audio_processor([wave], sampling_rate=rate, return_tensors="pt"))
    return {}


def processed(request: dict[str, Any], folder: Path, processor: Any) -> dict[str, Any]:
    """All inputs of a request by the library's processor, from text with one placeholder."""
    media: dict[str, Any] = {}
    if request["kind"] == "image":
        media["images"] = [Image.open(folder / request["media"]).convert("RGB")]
    if request["kind"] == "audio":
        wave, rate = soundfile.read(folder / request["media"], dtype="float32")
        media |= {"audio": [wave], "sampling_rate": rate}
    inputs = dict(processor(text=request["text"], return_tensors="pt", **media))
    assert inputs["input_ids"][0].tolist() == request["ids"], "the processor's ids differ"
    return inputs


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, Any], work: dict[str, Any]) -> list[int]:
    """The greedy answer without its end."""
    ids = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=work["max_tokens"],
        eos_token_id=work["eos"],
        pad_token_id=work["eos"][0],
    )
    new = ids[0, inputs["input_ids"].shape[1] :].tolist()
    end = next((i for i, id in enumerate(new) if id in work["eos"]), len(new))
    return new[:end]


def ids_of(request: dict[str, Any]) -> dict[str, Any]:
    ids = torch.tensor(request["ids"])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def text_answers(model: Any, work: dict[str, Any], adapter: str) -> dict[str, list[int]]:
    return {
        r["name"]: answer(model, ids_of(r), work)
        for r in work["requests"]
        if r["kind"] == "text" and r["adapter"] == adapter
    }


def by_transformers(folder: Path, work: dict[str, Any], *, adapters: bool) -> dict[str, list[int]]:
    """Answers by the multimodal class: to the requests without an adapter, or to those with vision and speech by the
    library's own loading of adapters."""
    model = load(Phi4MultimodalForCausalLM, folder / "native")
    names = ("vision", "speech") if adapters else ()
    for name in names:
        model.load_adapter(folder / "native" / f"{name}-lora", adapter_name=name)
    processor = AutoProcessor.from_pretrained(folder / "native")
    answers = {}
    for request in work["requests"]:
        if request["adapter"] in (names or ("",)):
            if names:
                model.set_adapter(request["adapter"])
            inputs = ids_of(request) | media_of(request, folder, processor)
            answers[request["name"]] = answer(model, inputs, work)
    return answers


def by_peft(folder: Path, work: dict[str, Any], *, own_processor: bool) -> dict[str, list[int]]:
    """Answers by PEFT's model with all adapters."""
    base = load(Phi4MultimodalForCausalLM, folder / "native")
    processor = AutoProcessor.from_pretrained(folder / "native")
    lora = sorted((folder / "native").glob("*-lora"))
    names = [path.name.removesuffix("-lora") for path in lora]
    model = PeftModel.from_pretrained(base, lora[0], adapter_name=names[0])
    for path, name in zip(lora[1:], names[1:], strict=True):
        model.load_adapter(path, adapter_name=name)
    answers = {}
    for request in work["requests"]:
        inputs = (
            processed(request, folder, processor)
            if own_processor
            else ids_of(request) | media_of(request, folder, processor)
        )
        if request["adapter"]:
            model.set_adapter(request["adapter"])
            answers[request["name"]] = answer(model, inputs, work)
        else:
            with model.disable_adapter():
                answers[request["name"]] = answer(model, inputs, work)
    return answers


def train(folder: Path, work: dict[str, Any], *, lora: bool) -> dict[str, Any]:
    """Two steps of SFTTrainer on text, on a LoRA or on the whole language model; what it wrote, and answers."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "native")
    model = load(Phi4MultimodalForCausalLM, folder / "native")
    if not lora:
        for name, p in model.named_parameters():
            p.requires_grad_("embed_tokens_extend" not in name)
    out = folder / ("sft-lora" if lora else "sft-full")
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": reply}],
        }
        for question, reply in PAIRS
    ]
    options = SFTConfig(
        output_dir=str(out),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_list(rows * 2),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM")
        if lora
        else None,
    )
    trainer.train()
    trainer.save_model(str(out))
    trained = trainer.model.eval()
    first = next(r for r in work["requests"] if r["kind"] == "text" and not r["adapter"])
    with torch.inference_mode():
        logits = trained(**ids_of(first), use_cache=False).logits[0]
    save_file({first["name"]: logits.contiguous()}, folder / f"{out.name}.logits")
    return {
        "version": f"{version('trl')}, transformers {version('transformers')}, peft {version('peft')}",
        "answers": text_answers(trained, work, ""),
        "trained": str(out),
        "logits": str(folder / f"{out.name}.logits"),
    }


def results(part: str, folder: Path, work: dict[str, Any]) -> dict[str, Any]:
    """The answers of a part, and what a training adds to them."""
    if part in ("sft-lora", "sft-full"):
        return train(folder, work, lora=part == "sft-lora")
    if part == "mini":
        answers = text_answers(load(Phi3ForCausalLM, folder / "mini"), work, "")
    elif part == "peft-mini":
        base = load(Phi3ForCausalLM, folder / "mini")
        model = PeftModel.from_pretrained(base, folder / "native" / "third-lora")
        answers = text_answers(model, work, "third")
    elif part in ("native", "native-adapters"):
        answers = by_transformers(folder, work, adapters=part == "native-adapters")
    else:
        answers = by_peft(folder, work, own_processor=part == "processor")
    return {"answers": answers}


def main() -> None:
    part, folder = sys.argv[1], Path(sys.argv[2])
    transformers.logging.set_verbosity_error()
    work = json.loads((folder / "requests.json").read_text())
    # the others are for llama.cpp
    work["requests"] = [r for r in work["requests"] if r["kind"] in ("text", "image", "audio")]
    report: dict[str, Any] = {
        "version": version("peft" if part.startswith("peft") else "transformers")
    }
    try:
        report |= results(part, folder, work)
    except (ValueError, ImportError) as error:  # the library's reasons to refuse
        report["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(report))


if __name__ == "__main__":
    main()
