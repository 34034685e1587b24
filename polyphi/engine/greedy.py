"""Greedy answers of a model to a few prompts, as in the evaluations of a fine-tune."""

from collections.abc import Sequence

from polyphi.engine.cache import BLOCK, token_bytes
from polyphi.engine.engine import Engine
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams


def greedy_answers(
    model: PhiModel,
    processor: Processor,
    prompts: Sequence[tuple[Sequence[Message], str]],
    max_tokens: int,
) -> list[str]:
    """The greedy answers of a model, of at most `max_tokens` tokens, to prompts, each with the name of its adapter or
    "auto". They are generated one by one, with a KV cache for the longest one."""
    longest = max((processor.count(messages).total for messages, _ in prompts), default=0)
    blocks = (longest + max_tokens) // BLOCK + 2
    memory = blocks * BLOCK * token_bytes(model.config.decoder, model.decoder.dtype)
    engine = Engine(model, processor, memory=memory, max_num_seqs=1, prefix_cache=False)
    sampling = SamplingParams(max_tokens=max_tokens)
    return [
        engine.generate(messages, sampling=sampling, adapter=adapter).text
        for messages, adapter in prompts
    ]
