"""What was decided on small models, on the weights of a real language model: drafts by prompt lookup, the KV cache in
8 bits, products in bfloat16.

    python -m experiments decoder FOLDER

Three tables. Acceptance: how often the token after a match of a length is the next one, over greedy answers to eight
requests that repeat their prompt more or less. Drafts: the time of these answers without draft tokens over that with
15, in turns. Rounding: the next token's distribution after each token of a text, beside that in float32.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from polyphi.api import Phi, load
from polyphi.engine.prompt_lookup import ACCEPTANCE, PromptLookup, _length_class
from polyphi.processing.placeholders import TokensPrompt
from polyphi.runtime.rendering import table
from polyphi.types.completion import TokenLogprob
from polyphi.types.sampling import SamplingParams

TEXT = (
    "The old lighthouse stood on a small island off the northern coast. Every evening the keeper climbed its ninety "
    "steps, cleaned the lamp and lit it before the sun went down. In winter the boats could not reach the island for "
    "weeks, and he lived on bread, dried fish and the letters that he had already read."
)
CODE = "def add(numbers):\n    x = 0\n    for n in numbers:\n        x += n\n    return x"
REQUESTS = {
    "repeat": f"Repeat this text word for word: {TEXT}",
    "correct": f"Correct the spelling and return the text: {TEXT.replace('keeper', 'keper')}",
    "rename": f"Rename x to total and return only the code:\n{CODE}",
    "docstring": f"Add a docstring to this function:\n{CODE}",
    "summary": f"Summarize in one sentence: {TEXT}",
    "question": f"{TEXT}\n\nHow did the keeper live in winter?",
    "story": "Write a short story about a fox and a river.",
    "list": "List ten capitals of Europe with their countries.",
}
ANSWER_TOKENS, DRAFT, TURNS, LIKELIEST = 96, 15, 3, 20


def accepted(phi: Phi) -> str:
    """A table: the share of right tokens after matches of each class of lengths, beside the engine's initial rate."""
    lengths = ("1", "2 to 3", "4 to 7", "8")
    right, every = Counter[int](), Counter[int]()
    for prompt in REQUESTS.values():
        ids = phi.processor.tokenizer.encode(prompt)
        lookup = PromptLookup(ids)
        for token in phi.generate(prompt, max_tokens=ANSWER_TOKENS, draft=0).tokens:
            if drafts := lookup.propose(1):
                assert lookup._match is not None
                length = _length_class(lookup._match[0])
                every[length] += 1
                right[length] += drafts[0][0] == token
            lookup.add(token)
    rows = [
        (length, f"{right[n]} of {every[n]}", f"{right[n] / max(1, every[n]):.2f}", ACCEPTANCE[n])
        for n, length in enumerate(lengths)
    ]
    return table(("match", "right", "share", "initial rate"), rows, "lrrr")


def drafted(folder: Path, quants: tuple[str | None, ...] = (None, "bf16", "int8", "int4")) -> str:
    """A table: the time of each answer without drafts over that with them, medians of turns."""
    rows = []
    for quant in quants:
        phi = load(folder, quant=quant)
        gains = {}
        for name, prompt in REQUESTS.items():
            seconds: dict[int, list[float]] = {0: [], DRAFT: []}
            for draft in (0, DRAFT) * TURNS:
                begin = time.perf_counter()
                tokens = phi.generate(prompt, max_tokens=ANSWER_TOKENS, draft=draft).tokens
                seconds[draft].append((time.perf_counter() - begin) / len(tokens))
            gains[name] = statistics.median(seconds[0]) / statistics.median(seconds[DRAFT])
        rows.append((quant or "float32", *(f"{gain:.2f}" for gain in gains.values())))
    return table(("weights", *REQUESTS), rows, "l" + "r" * len(REQUESTS))


def distributions(phi: Phi, ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """The likeliest tokens after each position of a text."""
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=LIKELIEST)
    return phi.generate(TokensPrompt(ids), sampling=sampling).prompt_logprobs


def divergence(expected: TokenLogprob, actual: TokenLogprob) -> float:
    """The KL divergence over the tokens that are among the likeliest of both, and all others as one: a lower bound."""
    other = dict(actual.top)
    pairs = [(p, other[token]) for token, p in expected.top if token in other]
    rest = [math.log(max(1e-12, 1 - sum(map(math.exp, side)))) for side in zip(*pairs, strict=True)]
    return sum(math.exp(p) * (p - q) for p, q in [*pairs, (rest[0], rest[1])])


def rounded(folder: Path, text: str, tokens: int) -> str:
    """A table: how far ways of computing are from float32 on a text."""
    phi = load(folder, dtype="float32")
    ids = phi.processor.tokenizer.encode(text)[:tokens]
    reference = distributions(phi, ids)
    ways = {
        "float32, cache in 8 bits": partial(load, folder, dtype="float32", kv="int8"),
        "bfloat16": partial(load, folder, dtype="bfloat16"),
        "bfloat16, cache in 8 bits": partial(load, folder, dtype="bfloat16", kv="int8"),
        "int8": partial(load, folder, quant="int8"),
        "int8, cache in 8 bits": partial(load, folder, quant="int8", kv="int8"),
        "int4": partial(load, folder, quant="int4"),
    }
    rows = []
    for name, way in ways.items():
        pairs = list(zip(reference, distributions(way(), ids), strict=True))
        kl = sorted(divergence(*pair) for pair in pairs)
        same = statistics.mean(a.top[0][0] == b.top[0][0] for a, b in pairs)
        gain = statistics.mean(b.logprob - a.logprob for a, b in pairs)
        mean, high = statistics.mean(kl), kl[int(0.999 * len(kl))]
        rows.append((name, f"{mean:.5f}", f"{high:.3f}", f"{same:.1%}", f"{math.exp(-gain):.4f}"))
    titles = ("weights and cache", "KL mean", "KL 99.9 %", "same top token", "perplexity ratio")
    return table(titles, rows, "lrrrr")
