"""onnxruntime-genai, on a checkpoint of transformers' Phi3 layout with its tokenizer.

    python ort.py CHECKPOINT WORK KIND THREADS      KIND: int4

The first turn builds WORK/onnxruntime-int4 by the project's own model builder with its defaults for CPUs: blocks of 32
inputs, activations rounded to int8 in the product, the head in 4 bits too.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from turns import STEPS, take_turns


class OnnxRuntime:
    def __init__(self, folder: Path, threads: int) -> None:
        config = genai.Config(str(folder))
        config.overlay(
            json.dumps(
                {
                    "model": {
                        "decoder": {
                            "session_options": {
                                "intra_op_num_threads": threads,
                                # an idle side computes nothing
                                "session.intra_op.allow_spinning": "0",
                            }
                        }
                    }
                }
            )
        )
        self.model = genai.Model(config)
        config_ = json.loads((folder / "genai_config.json").read_text())
        self.vocabulary = config_["model"]["vocab_size"]

    def generator(self, ids: np.ndarray) -> genai.Generator:
        """With the ids [S T] in its cache."""
        params = genai.GeneratorParams(self.model)
        params.set_search_options(
            batch_size=len(ids), max_length=ids.shape[1] + STEPS, min_length=0, do_sample=False
        )
        generator = genai.Generator(self.model, params)
        generator.append_tokens(ids.astype(np.int32))
        return generator

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        return self.generator(ids[None]).get_logits().reshape(-1, self.vocabulary)[-1]

    logits = prefill

    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        """Greedy, on its own tokens: the first is known from the prompt."""
        generator = self.generator(prompts)
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(more.shape[1]):
            generator.generate_next_token()
        return time.perf_counter() - start


def main(checkpoint: str, work: str, kind: str, threads: str) -> None:
    folder = Path(work) / f"onnxruntime-{kind}"
    if not folder.exists():
        partial = folder.with_suffix(".part")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint]
        command += ["-o", str(partial), "-p", kind, "-e", "cpu", "-c", str(partial) + "-cache"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        partial.rename(folder)
    take_turns(OnnxRuntime(folder, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:])
