"""One side of a comparison in a process of its own: it makes its model once, then takes turns.

Every line on standard input is a command, answered by one line of JSON:

    prefill N          N tokens into an empty cache, logits of the last: {"seconds": ...}
    decode S K         K more tokens of S sequences, each behind a prompt of 256, one step for all: {"seconds": ...}
    logits FILE N      the same logits for the first N of the work's ids, float32, as .npy: {}
    quit

A side between two commands computes nothing. Ids are drawn anew in each turn, from the same seed on all sides, so that
no cache of prompts has seen them. Needs numpy alone, since it runs in the peers' environments.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROMPT = 256
"""Tokens of context behind which is decoded."""


class Side(Protocol):
    vocabulary: int

    def prefill(self, ids: np.ndarray) -> object:
        """Run the ids from an empty cache, up to the logits of the last."""

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """These logits [V]."""

    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        """Seconds of `more` [S K] behind the prompts [S 256], whose own time isn't counted."""


def take_turns(made: Side) -> None:
    """Answer commands until standard input ends or says `quit`."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes elsewhere
    random = np.random.default_rng(0)
    fixed = np.random.default_rng(1).integers(0, made.vocabulary, 4096)

    def ids(*shape: int) -> np.ndarray:
        return random.integers(0, made.vocabulary, shape)

    def prefill(count: str) -> dict[str, Any]:
        prompt = ids(int(count))
        start = time.perf_counter()
        made.prefill(prompt)
        return {"seconds": time.perf_counter() - start}

    def decode(sequences: str, steps: str) -> dict[str, Any]:
        return {
            "seconds": made.decode(ids(int(sequences), PROMPT), ids(int(sequences), int(steps)))
        }

    def logits(file: str, count: str) -> dict[str, Any]:
        np.save(Path(file), np.asarray(made.logits(fixed[: int(count)]), dtype=np.float32))
        return {}

    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "prefill": prefill,
        "decode": decode,
        "logits": logits,
    }
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        name, *given = line.split()
        if name == "quit":
            break
        print(json.dumps(commands[name](*given)), file=out)
