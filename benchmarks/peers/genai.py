"""OpenVINO GenAI's LLMPipeline, on a checkpoint of transformers' Phi3 layout with its tokenizer.

    python genai.py CHECKPOINT WORK KIND THREADS      KIND: int8 or int4

The first turn of a KIND exports to WORK/openvino-KIND as the project's own command does: `optimum-cli export openvino
--weight-format KIND`; int4 in groups of 128, head and embedding in int8. The pipeline has its defaults: paged
attention, keys and values in uint8, activations quantized per group of 32 where the CPU's product can. Decoding is
greedy, on its own tokens.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from turns import take_turns

FORMAT = {"int8": [], "int4": ["--group-size", "128", "--ratio", "1.0"]}


class GenAI:
    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.pipeline = None
        self.vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]

    def generate(self, prompts: np.ndarray, tokens: int) -> openvino_genai.PerfMetrics:
        if self.pipeline is None:
            self.pipeline = openvino_genai.LLMPipeline(
                str(self.folder), "CPU", INFERENCE_NUM_THREADS=self.threads
            )
        config = openvino_genai.GenerationConfig(
            max_new_tokens=tokens, ignore_eos=True, do_sample=False
        )
        ones = openvino.Tensor(np.ones(prompts.shape, dtype=np.int64))
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompts.astype(np.int64)), ones)
        return self.pipeline.generate(inputs, config).perf_metrics

    def prefill(self, ids: np.ndarray) -> None:
        self.generate(ids[None], 1)

    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        steps = more.shape[1]
        durations = self.generate(prompts, steps + 1).raw_metrics.token_infer_durations  # in us
        return sum(durations[1:]) / 1e6

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """By the exported model, since the pipeline doesn't return logits; it is freed before the pipeline is built."""
        model = openvino.Core().compile_model(
            self.folder / "openvino_model.xml", "CPU", {"INFERENCE_NUM_THREADS": self.threads}
        )
        request = model.create_infer_request()
        count = len(ids)
        request.infer(
            {
                "input_ids": ids[None],
                "attention_mask": np.ones((1, count), dtype=np.int64),
                "position_ids": np.arange(count)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
        )
        return request.get_tensor("logits").data[0, -1].copy()


def main(checkpoint: str, work: str, kind: str, threads: str) -> None:
    folder = Path(work) / f"openvino-{kind}"
    if not folder.exists():
        partial = folder.with_suffix(".part")
        command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino"]
        command += ["--model", checkpoint, "--task", "text-generation-with-past"]
        command += ["--weight-format", kind, *FORMAT[kind], partial]
        subprocess.run(command, check=True, stdout=sys.stderr)
        partial.rename(folder)
    take_turns(GenAI(folder, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:])
