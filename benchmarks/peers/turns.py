"""One side of a comparison in its own process: it builds its model once, then runs commands.

Every line on standard input is a command, answered by one line of JSON:

    prefill N          N tokens into an empty cache, up to the logits of the last: {"seconds": ...}
    decode S K         K more tokens of S sequences, each behind a prompt of 256, one step for all: {"seconds": ...}
    first KIND FILE    a picture or clip, as bytes in a file, to the first token: {"seconds": ..., "media": ...,
                       "encoders": ..., "prefill": ..., "tokens": ...}, the parts in seconds, tokens of the prompt
    logits FILE N      float32 logits behind the first N of the ids that all sides share, as .npy: {}
    quit

The first line says that it is ready: {"bytes": weights that a decoded token needs, where it knows}.

A side between two commands computes nothing. Prompts are drawn anew in each turn, from the same seed on all sides, so
that no cache has seen them. Needs numpy alone, since it runs in the peers' environments.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROMPT, SEQUENCES, STEPS, LONGEST = 256, 8, 64, 2048
"""Context length before decoding; maximum sequences, steps and tokens of a command."""


class Side(Protocol):
    vocabulary: int

    def prefill(self, ids: np.ndarray) -> object:
        """Run the ids from an empty cache, up to the logits of the last."""

    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        """Seconds of `more` [S K] behind the prompts [S 256], whose own time isn't counted. A side that can't decode
        given tokens samples its own."""

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """The logits [V] after the ids."""

    def first(self, kind: str, file: Path) -> dict[str, float]:
        """Seconds of the parts between a file's bytes and the first token, and the prompt's tokens."""


def take_turns(side: Side) -> None:
    """Answer commands until standard input ends or says `quit`."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries goes to standard error
    random = np.random.default_rng(0)
    shared = np.random.default_rng(1).integers(0, side.vocabulary, LONGEST)

    def ids(*shape: int) -> np.ndarray:
        return random.integers(0, side.vocabulary, shape)

    def prefill(count: str) -> dict[str, Any]:
        prompt = ids(int(count))
        start = time.perf_counter()
        side.prefill(prompt)
        return {"seconds": time.perf_counter() - start}

    def decode(sequences: str, steps: str) -> dict[str, Any]:
        prompts, more = ids(int(sequences), PROMPT), ids(int(sequences), int(steps))
        return {"seconds": side.decode(prompts, more)}

    def first(kind: str, file: str) -> dict[str, Any]:
        start = time.perf_counter()
        parts = side.first(kind, Path(file))
        return {"seconds": time.perf_counter() - start, **parts}

    def logits(file: str, count: str) -> dict[str, Any]:
        np.save(Path(file), np.asarray(side.logits(shared[: int(count)]), dtype=np.float32))
        return {}

    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "prefill": prefill,
        "decode": decode,
        "first": first,
        "logits": logits,
    }
    print(json.dumps({"bytes": getattr(side, "bytes", 0)}), file=answers)
    for line in sys.stdin:
        name, *arguments = line.split()
        if name == "quit":
            break
        print(json.dumps(commands[name](*arguments)), file=answers)
