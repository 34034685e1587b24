"""llama.cpp, through llama-cpp-python, on a checkpoint of transformers' Phi3 layout.

    python llama.py CHECKPOINT WORK KIND THREADS      KIND: Q4_0, Q8_0, or Q4_0-pure

The first turn of a KIND writes WORK/KIND.gguf: the weights in bfloat16 by gguf's writer, then quantized by
llama.cpp's own `llama_model_quantize`. Its Q4_0 keeps the tied embedding, which is the head, in Q6_K; `Q4_0-pure` has
4 bits everywhere. Contexts are llama.cpp's defaults but for their lengths: flash attention is its own choice, keys and
values are float16, weights are repacked for the CPU by its own choice.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np
from turns import LONGEST, PROMPT, SEQUENCES, STEPS, take_turns

KINDS = {"Q4_0": (2, False), "Q4_0-pure": (2, True), "Q8_0": (7, False)}
"""llama_ftype, and whether every matrix has that type."""
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def public(name: str) -> str:
    """The name that GGUF has for a tensor."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, number, rest = stem.split(".", 3)
        return f"blk.{number}.{NAMES[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def checkpoint(folder: Path):
    """(name, shape, raw bytes) of every bfloat16 tensor of safetensors files."""
    for file in sorted(folder.glob("*.safetensors")):
        data = np.memmap(file, dtype=np.uint8, mode="r")
        size = int(data[:8].view(np.uint64)[0])
        header = json.loads(bytes(data[8 : 8 + size]))
        for name, entry in header.items():
            if name != "__metadata__":
                assert entry["dtype"] == "BF16", f"{name}: expected BF16, found {entry['dtype']}"
                first, last = (8 + size + offset for offset in entry["data_offsets"])
                yield name, entry["shape"], data[first:last]


def write(folder: Path, target: Path) -> None:
    """The checkpoint as GGUF: matrices in bfloat16, vectors in float32, no vocabulary."""
    c = json.loads((folder / "config.json").read_text())
    head = c["hidden_size"] // c["num_attention_heads"]
    writer = gguf.GGUFWriter(target, "phi3")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c["vocab_size"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(c["original_max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_dimension_count(int(head * c["partial_rotary_factor"]))
    writer.add_rope_freq_base(c["rope_theta"])
    stretch = c["max_position_embeddings"] / c["original_max_position_embeddings"]
    original = np.log(c["original_max_position_embeddings"])
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(stretch) / original)))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for kind in ("long", "short"):
        factors = np.array(c["rope_scaling"][f"{kind}_factor"], dtype=np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    for name, shape, raw in checkpoint(folder):
        if name == "lm_head.weight":
            continue  # tied
        if len(shape) == 1:
            wide = raw.view(np.uint16).astype(np.uint32) << 16
            writer.add_tensor(public(name), wide.view(np.float32))
        else:
            rows = raw.reshape(shape[0], -1)
            writer.add_tensor(public(name), rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    whole, file = Path(work) / "bf16.gguf", Path(work) / f"{kind}.gguf"
    if not file.exists():
        if not whole.exists():
            partial = whole.with_suffix(".part")
            write(Path(checkpoint), partial)
            partial.rename(whole)
        quantize(whole, file, kind, int(threads))
    take_turns(Llama(file, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:])
