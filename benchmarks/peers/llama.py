"""llama.cpp, through llama-cpp-python, on WORK/bf16.gguf, which `polyphi export` writes of a checkpoint.

    python llama.py CHECKPOINT WORK KIND THREADS      KIND: Q4_0, Q8_0, Q4_K_M or Q4_0-pure

The first turn of a KIND writes WORK/KIND.gguf, quantized by llama.cpp's own `llama_model_quantize`. Its Q4_0 keeps the
tied embedding, which is the head, in Q6_K; `Q4_0-pure` has 4 bits everywhere. Contexts are llama.cpp's defaults but for
their lengths: flash attention is its own choice, keys and values are float16, weights are repacked for the CPU by its
own choice.
"""

import ctypes
import sys
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np
from turns import LONGEST, PROMPT, SEQUENCES, STEPS, take_turns

KINDS = {
    "Q4_0": (2, False),
    "Q4_0-pure": (2, True),
    "Q4_K_M": (15, False),
    "Q8_0": (7, False),
}
"""llama_ftype, and whether every matrix has that type."""


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.pure = KINDS[kind]
    params.nthread = threads
    partial = target.with_suffix(".part")
    if llama.llama_model_quantize(
        str(source).encode(), str(partial).encode(), ctypes.byref(params)
    ):
        raise RuntimeError(f"llama.cpp could not quantize {source} to {kind}")
    partial.rename(target)


class Llama:
    def __init__(self, file: Path, threads: int) -> None:
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {file}")
        self.threads = threads
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.single = self.context(1, LONGEST + STEPS)
        self.several = None

    def context(self, sequences: int, tokens: int):
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * tokens, sequences
        params.n_batch = max(LONGEST, sequences)
        params.n_threads = params.n_threads_batch = self.threads
        return llama.llama_init_from_model(self.model, params)

    def run(self, context, ids: np.ndarray, start: int) -> None:
        """ids [S T] from position `start` on; logits of the last of each sequence."""
        sequences, tokens = ids.shape
        batch = llama.llama_batch_init(ids.size, 0, 1)
        batch.n_tokens = ids.size
        for i, token in enumerate(ids.T.reshape(-1)):
            step, sequence = divmod(i, sequences)
            batch.token[i], batch.pos[i] = int(token), start + step
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = step == tokens - 1
        if code := llama.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        llama.llama_batch_free(batch)

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        llama.llama_memory_clear(llama.llama_get_memory(self.single), False)
        self.run(self.single, ids[None], 0)
        logits = llama.llama_get_logits_ith(self.single, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,)).copy()

    logits = prefill

    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        context = self.single
        if len(prompts) > 1:
            self.several = context = self.several or self.context(SEQUENCES, PROMPT + STEPS)
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        for i in range(0, PROMPT, 64):  # within a batch
            self.run(context, prompts[:, i : i + 64], i)
        start = time.perf_counter()
        for i in range(more.shape[1]):
            self.run(context, more[:, i : i + 1], PROMPT + i)
            llama.llama_get_logits_ith(context, -1)
        return time.perf_counter() - start


def main(checkpoint: str, work: str, kind: str, threads: str) -> None:
    file = Path(work) / f"{kind}.gguf"
    if not file.exists():
        quantize(Path(work) / "bf16.gguf", file, kind, int(threads))
    take_turns(Llama(file, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:])
