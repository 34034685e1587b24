"""llama.cpp, through llama-cpp-python, on a GGUF file of polyphi.

    python exports_llama.py WORK.json

WORK names the file (`gguf`), texts to tokenize (`texts`), conversations (`chats`), and requests: ids, the tokens of the
answer at most, and the context that is allocated, by whose length llama.cpp chooses LongRoPE's factors. Prints one JSON
object: the version, ids of the texts and of the conversations by the file's own template, greedy answers by the name of
their request, and a file (beside WORK) with the logits that each token of an answer was chosen from.

Keys and values are float32, attention isn't fused: what is compared is the model, not the precision of its cache.
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

    def __init__(self, file: str) -> None:
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(file.encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp could not load {file}")
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.rows = llama.llama_vocab_n_tokens(self.vocabulary)

    def tokenize(self, text: str, *, controls: bool) -> list[int]:
        """The ids of a text; `controls`: names of control tokens become these."""
        data = text.encode()
        ids = (llama.llama_token * (len(data) + 1))()
        count = llama.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), True, controls)
        return list(ids[:count])

    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """The ids of a conversation and the beginning of its answer."""
        template = llama.llama_model_chat_template(self.model, None).decode()
        render = Jinja2ChatFormatter(template, eos_token="", bos_token="")
        return self.tokenize(render(messages=messages).prompt, controls=True)

    def answer(self, ids: list[int], tokens: int, context: int) -> tuple[list[int], np.ndarray]:
        """The greedy answer without its end, and the logits [T V] of its tokens and of the end."""
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, BATCH, BATCH
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
                batch = llama.llama_batch_get_one((llama.llama_token * len(part))(*part), len(part))
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
    path = Path(sys.argv[1])
    work = json.loads(path.read_text())
    model = Model(work["gguf"])
    answers, logits = {}, {}
    for request in work["requests"]:
        name = request["name"]
        answers[name], logits[name] = model.answer(
            request["ids"], request["tokens"], request["context"]
        )
    np.savez(path.with_suffix(".npz"), **logits)
    report = {
        "version": version("llama-cpp-python"),
        "texts": [model.tokenize(text, controls=False) for text in work["texts"]],
        "chats": [model.chat(messages) for messages in work["chats"]],
        "answers": answers,
        "logits": str(path.with_suffix(".npz")),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
