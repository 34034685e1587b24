"""llama.cpp, through llama-cpp-python, on GGUF exports of polyphi.

    python exports_llama.py PART FOLDER

FOLDER is what `interchange.py` wrote: `phi.gguf`, `third.gguf`, and `requests.json`. PART: gguf, or
gguf-third for the file with the third adapter merged. Prints one JSON object: the version, the results by the name of
their request (greedy answers, and the ids of texts and conversations), and the file with the logits that the tokens of
answers were chosen from. A request has a context of the length that it needs, because llama.cpp chooses LongRoPE's
factors by the length of the context.

Keys and values are float32, and attention isn't fused: this compares the model, not the precision of the cache.
"""

import ctypes
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

BATCH = 512
quiet = llama.llama_log_callback(lambda level, text, data: None)
llama.llama_log_set(quiet, ctypes.c_void_p())


class Model:
    """A GGUF file."""

    def __init__(self, file: Path) -> None:
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp could not load {file}")
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.rows = llama.llama_vocab_n_tokens(self.vocabulary)

    def tokenize(self, text: str, *, controls: bool) -> list[int]:
        """The ids of a text; `controls`: names of control tokens become these."""
        data = text.encode()
        ids = (llama.llama_token * (len(data) + 1))()
        count = llama.llama_tokenize(
            self.vocabulary, data, len(data), ids, len(ids), True, controls
        )
        return list(ids[:count])

    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """The ids of a conversation and the beginning of its answer."""
        template = llama.llama_model_chat_template(self.model, None).decode()
        render = Jinja2ChatFormatter(template, eos_token="", bos_token="")
        return self.tokenize(render(messages=messages).prompt, controls=True)

    def answer(self, ids: list[int], tokens: int) -> tuple[list[int], np.ndarray]:
        """The greedy answer without its end, and the logits [T V] of its tokens and of the end."""
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = len(ids) + tokens, BATCH, BATCH
        params.type_k = params.type_v = llama.GGML_TYPE_F32
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = 1
        opened = llama.llama_init_from_model(self.model, params)
        answer: list[int] = []
        logits = []
        new = ids
        while len(answer) < tokens:
            for start in range(0, len(new), BATCH):
                part = new[start : start + BATCH]
                array = (llama.llama_token * len(part))(*part)  # the batch only points to it
                batch = llama.llama_batch_get_one(array, len(part))
                if code := llama.llama_decode(opened, batch):
                    raise RuntimeError(f"llama_decode returned {code}")
            row = llama.llama_get_logits_ith(opened, -1)
            logits.append(np.ctypeslib.as_array(row, (self.rows,)).copy())
            new = [int(logits[-1].argmax())]
            if llama.llama_vocab_is_eog(self.vocabulary, new[0]):
                break
            answer += new
        llama.llama_free(opened)
        return answer, np.stack(logits)


def main() -> None:
    part, folder = sys.argv[1], Path(sys.argv[2])
    work = json.loads((folder / "requests.json").read_text())
    adapter = "third" if part == "gguf-third" else ""
    results: dict[str, list[int]] = {}
    logits: dict[str, np.ndarray] = {}
    report: dict[str, Any] = {"version": version("llama-cpp-python"), "answers": results}
    try:
        model = Model(folder / ("third.gguf" if adapter else "phi.gguf"))
    except ValueError as error:
        report["error"] = f"ValueError: {error}"
    for request in work["requests"] if "error" not in report else ():
        name, kind = request["name"], request["kind"]
        if kind == "tokenization":
            results[name] = model.tokenize(request["text"], controls=False)
        elif kind == "conversation":
            results[name] = model.chat(json.loads(request["text"]))
        elif kind in ("text", "long") and request["adapter"] == adapter:
            results[name], logits[name] = model.answer(request["ids"], work["max_tokens"])
    if logits:
        report["logits"] = str(folder / f"{part}.npz")
        np.savez(report["logits"], **logits)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
