"""Logits of a GGUF file in a type of llama.cpp, by llama-cpp-python.

    python llama_logits.py SOURCE.gguf TYPE WORK THREADS        TYPE: F32, Q8_0, Q4_0, Q4_K_M ...

WORK/ids.json has lists of token ids. Writes WORK/TYPE.gguf, quantized by llama.cpp's own `llama_model_quantize`, unless
it exists, and WORK/TYPE.npy: float32 logits of every position, list after list. F32 is the source itself.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp as llama
import numpy as np

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
"""llama_ftype."""


def main(source: str, kind: str, work: str, threads: str) -> None:
    folder, file = Path(work), Path(source)
    if kind != "F32":
        file = folder / f"{kind}.gguf"
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.nthread = TYPES[kind], int(threads)
        if not file.exists():
            partial = file.with_suffix(".part")
            paths = str(source).encode(), str(partial).encode()
            if llama.llama_model_quantize(*paths, ctypes.byref(params)):
                raise RuntimeError(f"llama.cpp could not quantize {source} to {kind}")
            partial.rename(file)
    rows = json.loads((folder / "ids.json").read_text())
    longest = max(map(len, rows))
    model = llama.Llama(
        str(file),
        n_ctx=longest,
        n_batch=longest,
        n_threads=int(threads),
        n_threads_batch=int(threads),
        logits_all=True,
        verbose=False,
    )
    logits = []
    for ids in rows:
        model.reset()
        model.eval(ids)
        logits.append(np.array(model.scores[: len(ids)], dtype=np.float32))
    np.save(folder / f"{kind}.npy", np.concatenate(logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
