"""Fine-tuning at the published size, by the commands that users run: a random checkpoint of 5.6 billion bfloat16
parameters, a third adapter of rank 64, pictures of one crop and clips of two seconds.

    python benchmarks/finetune_full_size.py --out runs/published [--tiny] [--steps 20]

1. `polyphi train --base int4`, 20 steps of one or two rows, stopped once and resumed. The loss, seconds per step, and
   the memory beside what `polyphi plan` computes for these rows.
2. The exported model answers the rows, here and in transformers with PEFT; both in bfloat16.
3. Bases in bf16, int8 and int4 in turn, on clips of 15 seconds: tokens per second and the peak of memory.
4. Eight rows in a model of full width with 8 layers, until the loss is below 0.1; its answers, as in 2.

Parts whose result is in OUT/results.json are skipped, so that an interrupted run goes on; needs 40 GB of disk and 24 GB
of memory (`--tiny`: the same with a tiny model). Prints tables in Markdown.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from PIL import Image as Picture
from random_checkpoint import make

from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.processor import make_processor
from polyphi.engine.request import GREEDY
from polyphi.finetuning.stages import load_stage
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.progress import read_metrics
from polyphi.runtime.rendering import table
from polyphi.train.optimizer import groups
from polyphi.train.stage import Budget
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.image import ImageInput
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text

HERE = Path(__file__).parent
SENTENCES = (
    "a red square on white paper",
    "the blue circle is below it",
    "one green line near the edge",
    "grey dots in two long rows",
    "seven birds flew over the lake",
    "please close the window at night",
    "the train leaves at half past nine",
    "nobody answered the telephone today",
)
QUESTION = "What is it?"
MAX_TOKENS = 24
STAGE = """
from polyphi.model.config import AdapterConfig
from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="sibling",
    start={{}},
    adapters={{"sibling": AdapterConfig(rank={rank}, alpha={alpha})}},
    trainable={{"decoder.*.lora.sibling.*": {rate}}},
    data=Mix({mix}, adapter=dict.fromkeys({mix}, "sibling")),
    objective=NextToken(max_crops=1),
    schedule=Schedule(warmup=0.2, decay="linear"),
    context=1024,
    batch_tokens={batch_tokens},
    steps={steps},
)
"""
TINY = ModelConfig(
    DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        short_factor=(1.0,) * 6,
        long_factor=(2.0,) * 6,
    ),
    VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
    ),
    AudioConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_blocks=2,
        nemo_conv_channels=32,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
    ),
    adapters={"vision": AdapterConfig(8, 16.0), "speech": AdapterConfig(8, 16.0)},
)


@dataclass
class Setting:
    """The folder of the run, and sizes of the model and the work."""

    out: Path
    config: ModelConfig
    layers: int
    rank: int
    rate: float
    steps: int
    results: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of a part, measured now unless it is in results.json."""
        file = self.out / "results.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        if name not in results:
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            results[name] = measure()
            file.write_text(json.dumps(results, indent=1))
        return results[name]

    def stage(self, name: str, corpora: Sequence[str], batch_tokens: int, steps: int) -> Path:
        """A stage file."""
        text = STAGE.format(
            rank=self.rank,
            alpha=2.0 * self.rank,
            rate=self.rate,
            mix=dict.fromkeys(corpora, 1),
            batch_tokens=batch_tokens,
            steps=steps,
        )
        file = self.out / f"{name}.py"
        file.write_text(text)
        return file


# ------------------------------------------------------------------------------ checkpoint and rows


def write_checkpoint(setting: Setting, name: str, layers: int) -> Path:
    """A random checkpoint with `layers` layers of the decoder, in transformers' layout."""
    folder = setting.out / name
    if not folder.exists():
        tokenizer = Tokenizer.train([" ".join([*SENTENCES, QUESTION])] * 4, 512)
        tokenizer.save(setting.out / "tokenizer")
        config, end = setting.config, tokenizer.control("<|endoftext|>")
        assert config.vision is not None and config.audio is not None
        decoder = replace(
            config.decoder,
            num_hidden_layers=layers,
            bos_token_id=end,
            pad_token_id=end,
            eos_token_ids=tuple(tokenizer.eos_ids),
        )
        vision = replace(config.vision, image_token_id=tokenizer.image_id)
        audio = replace(config.audio, audio_token_id=tokenizer.audio_id)
        files = tuple(sorted((setting.out / "tokenizer").iterdir()))
        config = ModelConfig(decoder, vision, audio, config.adapters)
        make(config, folder, "native", shard_bytes=2_000_000_000, files=files)
    return folder


def conversations(setting: Setting) -> list[tuple[str, list[Message], str]]:
    """(corpus, prompt, answer) of the rows: four pictures, four clips, and one long clip for the timing. The media and
    the corpora are written to OUT/rows."""
    folder, rows = setting.out / "rows", []
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"pictures": [], "clips": [], "long": []}
    kinds = ["pictures"] * 4 + ["clips"] * 4 + ["long"] * 2
    for number, corpus in enumerate(kinds):
        answer = SENTENCES[number % len(SENTENCES)]
        if corpus == "pictures":
            file = folder / f"{number}.png"
            blocks = random.integers(0, 256, (4, 4, 3), np.uint8)
            Picture.fromarray(blocks).resize((320, 320), Picture.Resampling.NEAREST).save(file)
            media: Image | Audio = Image(file, max_crops=1)
            row = {"image": file.name, "question": QUESTION, "answer": answer}
        else:
            file = folder / f"{number}.wav"
            seconds = 15 if corpus == "long" else 2
            at = np.arange(16000 * seconds) / 16000
            wave = sum(np.sin(2 * np.pi * f * at) for f in random.integers(100, 4000, 3))
            soundfile.write(file, 0.1 * wave, 16000)
            media = Audio(file)
            row = {"audio": file.name, "question": QUESTION, "answer": answer}
        lines[corpus].append(json.dumps(row))
        rows.append((corpus, [Message("user", (media, Text(QUESTION)))], answer))
    for corpus, texts in lines.items():
        (folder / f"{corpus}.jsonl").write_text("\n".join(texts) + "\n")
    return rows


def batches(setting: Setting, checkpoint: Path, corpora: Sequence[str]) -> list[Batch]:
    """The rows of `corpora` as the training makes them."""
    processor = make_processor(read_config(checkpoint), Tokenizer.load(checkpoint))
    return [
        processor.row(
            [*prompt, Message("assistant", (Text(answer),))],
            supervise="answers",
            adapter="sibling",
        )
        for corpus, prompt, answer in conversations(setting)
        if corpus in corpora
    ]


# ------------------------------------------------------------------------------ training


def memory(process: psutil.Process) -> dict[str, int]:
    """Resident bytes of a process: anonymous, and pages of mapped files."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {k: int(values[k].split()[0]) << 10 for k in ("RssAnon", "RssFile")}


def train(
    setting: Setting, stage: Path, checkpoint: Path, out: Path, base: str, stop_after: int = 0
) -> dict[str, Any]:
    """Run `polyphi train`, once more if it is stopped after the step `stop_after`. Returns the peaks of memory before
    the first step, in the steps and after them, and the records of the steps."""
    command = [sys.executable, "-m", "polyphi.cli", "train", str(stage), "--model", str(checkpoint)]
    command += ["--out", str(out), *(["--base", base] if base != "bf16" else [])]
    command += ["--precision", "bf16", "--workers", "0"]
    for corpus in load_stage(stage).data.weights:
        command += ["--data", f"{corpus}={setting.out / 'rows' / corpus}.jsonl"]
    metrics, peaks = out / "metrics.jsonl", dict[str, dict[str, int]]()

    def run(stop: int) -> int:
        with (out.with_suffix(".log")).open("a") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log)
            process = psutil.Process(child.pid)
            while child.poll() is None:
                records = read_metrics(metrics) if metrics.exists() else []
                phase = "before" if not records else "steps"
                if (out / "manifest.json").exists():
                    phase = "after"
                try:
                    resident = memory(process)
                except (OSError, KeyError):  # it ends
                    break
                peak = peaks.setdefault(phase, {"RssAnon": 0, "RssFile": 0, "sum": 0})
                resident["sum"] = sum(resident.values())
                for key, value in resident.items():
                    peak[key] = max(peak[key], value)
                if stop and len(records) >= stop:
                    child.send_signal(signal.SIGINT)
                    stop = 0
                time.sleep(0.1)
            return child.wait()

    started = time.time()
    if stop_after and run(stop_after) == 0:
        raise RuntimeError(f"expected {out} to be stopped after step {stop_after}")
    if code := run(0):
        log_end = out.with_suffix(".log").read_text()[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log_end}")
    seconds = time.time() - started
    return {"peaks": peaks, "records": read_metrics(metrics), "seconds": seconds}


def timed(setting: Setting, stage: Path, checkpoint: Path, name: str, base: str) -> dict[str, Any]:
    """`train` into a folder that is removed, since an exported model takes 11 GB."""
    result = train(setting, stage, checkpoint, setting.out / name, base)
    shutil.rmtree(setting.out / name)
    return result


def learned_by_heart(setting: Setting, stage: Path, checkpoint: Path) -> dict[str, Any]:
    """`train` on all rows in each step, and the answers of the result."""
    result = train(setting, stage, checkpoint, setting.out / "overfit", "int4")
    model = setting.out / "overfit/model"
    result["answers"] = {who: in_a_process(setting, who, model) for who in ("ours", "transformers")}
    shutil.rmtree(setting.out / "overfit")
    return result


def seconds_per_step(records: Sequence[dict[str, Any]]) -> float:
    """The mean over all steps but the first."""
    return mean([r["tokens"] / r["tokens_per_second"] for r in records[1:]])


def planned(
    checkpoint: Path, stage_file: Path, rows: Sequence[Batch], base: str
) -> dict[str, float]:
    """Bytes by part that `polyphi plan` computes for a pack of `rows`."""
    stage, config = load_stage(stage_file), read_config(checkpoint)
    with torch.device("meta"):
        model = PhiModel(replace(config, adapters={**config.adapters, **stage.adapters}))
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    budget = Budget(stage.steps, stage.batch_tokens, stage.context, 1.0)
    target = cost.StageModel(stage, budget, model.config, tensors, groups(stage, tensors))
    on = cost.Switches(base=base)  # type: ignore[arg-type]
    return cost.memory(target, cost.work(rows, config), on, cpu=True)


# ------------------------------------------------------------------------------ answers


def answers(setting: Setting, model: Path) -> list[str]:
    """The exported model's greedy answers, in bfloat16."""
    import polyphi

    phi = polyphi.load(model, dtype="bfloat16")
    prompts = [prompt for corpus, prompt, _ in conversations(setting) if corpus != "long"]
    return [
        phi.generate(p, adapter="sibling", sampling=replace(GREEDY, max_tokens=MAX_TOKENS)).text
        for p in prompts
    ]


def transformers_answers(setting: Setting, model: Path) -> list[str]:
    """Greedy answers of transformers' class with the adapter loaded by PEFT."""
    from padding import collate
    from peft import PeftModel
    from transformers import Phi4MultimodalForCausalLM

    # The library's default attention makes crops without padding causal.
    loaded = Phi4MultimodalForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation={"": "sdpa", "vision_config": "eager"}
    )
    peer = PeftModel.from_pretrained(loaded, model / "sibling-lora", adapter_name="sibling").eval()
    tokenizer = Tokenizer.load(model)
    processor = make_processor(read_config(model), tokenizer)
    work = {"decoder": {"pad_token_id": tokenizer.control("<|endoftext|>")}}
    texts = []
    for corpus, prompt, _ in conversations(setting):
        if corpus == "long":
            continue
        row, written = processor.row(prompt, generation_prompt=True), list[int]()
        inputs: dict[str, Any] = {"ids": row.ids.tolist(), "supervise": [False] * len(row)}
        if (images := row.of(ImageInput)) is not None:
            layout = images.layouts[0]
            inputs |= {"crops": images.ready().crops, "crop_masks": images.masks}
            sides = layout.crop_rows, layout.crop_cols
            inputs["image_size"] = [processor.images.crop_size * n for n in sides]
        elif (audio := row.of(AudioInput)) is not None:
            inputs["mels"] = audio.mels
        batch: dict[str, Any] = collate([inputs], work)
        batch.pop("labels")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            while len(written) < MAX_TOKENS and not set(written) & set(tokenizer.eos_ids):
                out = peer(**batch, use_cache=True, logits_to_keep=1)
                written.append(int(out.logits[0, -1].argmax()))
                batch = {"input_ids": torch.tensor([[written[-1]]])}
                batch["past_key_values"] = out.past_key_values
        texts.append(tokenizer.decode([i for i in written if i not in tokenizer.eos_ids]))
    return texts


def in_a_process(setting: Setting, which: str, model: Path) -> list[str]:
    """The result of `answers` or `transformers_answers` in a process of its own, whose memory is given back."""
    command = [sys.executable, __file__, "--out", str(setting.out), "--answers", which]
    paths = os.pathsep.join(map(str, (HERE, HERE / "peers", HERE.parent)))
    done = subprocess.run(
        [*command, "--model", str(model)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


# ------------------------------------------------------------------------------ tables


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def show(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(table(titles, rows) + "\n")


def right(texts: Sequence[str]) -> int:
    """The number of answers that are the trained ones."""
    return sum(a == b for a, b in zip(texts, SENTENCES, strict=True))


def show_run(
    setting: Setting, run: dict[str, Any], plan: dict[str, float], texts_of: dict[str, Any]
) -> None:
    records = run["records"]
    losses = [r["loss"] for r in records]
    show(
        ["training on a base in int4", "measured"],
        [
            [
                "loss of the first step, mean of the last four",
                f"{losses[0]:.2f}, {mean(losses[-4:]):.2f}",
            ],
            ["steps, seconds per step", f"{len(records)}, {seconds_per_step(records):.1f}"],
            ["seconds with loading, quantizing twice, export", f"{run['seconds']:.0f}"],
            [
                "equal answers here and in transformers with PEFT",
                f"{sum(a == b for a, b in zip(*texts_of.values(), strict=True))} of {len(SENTENCES)}",
            ],
        ],
    )
    lines = [[part, gigabytes(count)] for part, count in plan.items()]
    show(["`polyphi plan`, one pack of a step", "GB"], lines)
    peaks = [
        [phase, *(gigabytes(peak[k]) for k in ("RssAnon", "RssFile", "sum"))]
        for phase, peak in run["peaks"].items()
    ]
    show(["peak of memory in GB", "anonymous", "mapped files", "together"], peaks)


def show_bases(bases: dict[str, dict[str, Any]]) -> None:
    lines = []
    for base, run in bases.items():
        rate = mean([r["tokens"] for r in run["records"]]) / seconds_per_step(run["records"])
        peak = max(p["sum"] for p in run["peaks"].values())
        steps = run["peaks"]["steps"]
        lines.append(
            [
                base,
                f"{rate:.1f}",
                gigabytes(steps["RssAnon"]),
                gigabytes(steps["sum"]),
                gigabytes(peak),
            ]
        )
    header = [
        "base",
        "tokens/s",
        "steps, anonymous GB",
        "steps, with mapped files",
        "peak of the run",
    ]
    show(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/published"))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to test the script")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--answers", choices=("ours", "transformers"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    config = TINY if args.tiny else ModelConfig()
    layers = 2 if args.tiny else 8
    setting = Setting(out, config, layers, 8 if args.tiny else 64, args.rate, args.steps)
    if args.answers:
        say = answers if args.answers == "ours" else transformers_answers
        print(json.dumps(say(setting, args.model)))
        return
    conversations(setting)
    checkpoint = write_checkpoint(setting, "checkpoint", config.decoder.num_hidden_layers)
    short = ("pictures", "clips")
    rows = batches(setting, checkpoint, short)
    pair = sum(len(row) for row in rows) // 4  # two rows of average length
    stage = setting.stage("sibling", short, pair, setting.steps)
    run = setting.part(
        "run", lambda: train(setting, stage, checkpoint, out / "run", "int4", setting.steps // 3)
    )
    plan = planned(
        checkpoint, stage, (rows[0], rows[4]), "int4"
    )  # the largest pack: a picture, a clip
    model = out / "run/model"
    texts_of = {
        who: setting.part(f"answers of {who}", lambda who=who: in_a_process(setting, who, model))
        for who in ("ours", "transformers")
    }
    show_run(setting, run, plan, texts_of)
    long = batches(setting, checkpoint, ("long",))
    longer = setting.stage("longer", ("long",), sum(map(len, long)), 5)
    bases = {
        base: setting.part(
            f"base {base}", lambda base=base: timed(setting, longer, checkpoint, base, base)
        )
        for base in ("bf16", "int8", "int4")
    }
    show_bases(bases)
    shallow = write_checkpoint(setting, "shallow", layers)
    overfit = setting.stage("overfit", short, sum(map(len, rows)), 30)
    fitted = setting.part("overfit", lambda: learned_by_heart(setting, overfit, shallow))
    below = [r["step"] for r in fitted["records"] if r["loss"] < 0.1]
    last = fitted["records"][-1]
    show(
        [f"eight rows, {layers} layers, base in int4", "measured"],
        [
            ["first step with a loss below 0.1", below[0] if below else "none"],
            ["loss of the last step", f"{last['loss']:.3f} (step {last['step']})"],
            ["seconds per step", f"{seconds_per_step(fitted['records']):.1f}"],
            [
                "right answers",
                ", ".join(f"{who} {right(t)}" for who, t in fitted["answers"].items()),
            ],
        ],
    )


if __name__ == "__main__":
    main()
