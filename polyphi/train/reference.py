"""Reference log-probabilities of all answers of a stage, by the model that the stage starts from, computed before
training. Then no second model stays in memory, and later epochs need no second forward.

    reference.jsonl    {"step": -1, "of": "9c1e..."}                              hash of the start
                       {"step": 0, "draws": 37, "corrupt": 0, "log_probs": {"4f0a...": -12.81}}

A row's key is a hash of its content (`Batch.keys`). A stage that is stopped meanwhile resumes after the last complete
line.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.data.loader import Loader, StepRows
from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed
from polyphi.runtime.progress import Metrics, read_metrics

REFERENCE = "reference.jsonl"


def key(row: Batch) -> str:
    """Hash of a row's content: its tokens, which of them are supervised, and the encoders' inputs."""
    hasher = hashlib.sha256()
    for tensor in (row.ids, row.supervised, row.crops, row.crop_masks, row.mels):
        if tensor is not None:
            hasher.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().data)
    return hasher.hexdigest()[:32]


class References:
    """Reference log-probabilities by row: called with a pack, it returns those of each sequence.
    `answer_log_probs(model, batch)` computes them."""

    def __init__(self, answer_log_probs: Callable[[PhiModel, Batch], Float[Tensor, " S"]]) -> None:
        self._answer_log_probs = answer_log_probs
        self._by_key: dict[str, float] = {}

    def __call__(self, batch: Batch) -> Float[Tensor, " S"]:
        """Raises KeyError for a row that `precompute` didn't reach."""
        return torch.tensor([self._by_key[k] for k in batch.keys], device=batch.ids.device)

    def log_probs(self, model: PhiModel, batch: Batch) -> dict[str, float]:
        """Log-probabilities of a pack's sequences by key, computed by `model`; only `precompute` stores them."""
        return dict(zip(batch.keys, self._answer_log_probs(model, batch).tolist(), strict=True))

    def precompute(
        self,
        loader: Loader,
        steps: int,
        log_probs: Callable[[StepRows], Mapping[str, float]],
        folder: Path,
        start: Mapping[str, Any],
        *,
        advance: Callable[[int, str], None],
        stopped: Callable[[], bool],
    ) -> None:
        """Compute the log-probabilities of all rows of the first `steps` steps and write them to `folder`; `start`
        identifies the weights. Raises KeyboardInterrupt where `stopped`, after a whole step."""
        start_hash = hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()
        first, *before = read_metrics(folder / REFERENCE) or [{}]
        if first.get("of") != start_hash:
            before = []
        for record in before:
            self._by_key |= record["log_probs"]
        distributed.wait()  # all processes must have read the file before the first one changes it
        with ExitStack() as stack:
            file = None
            if distributed.rank() == 0:
                file = Metrics(folder / REFERENCE, until=len(before) if before else -1)
                stack.callback(file.close)
                if not before:
                    file.write({"step": -1, "of": start_hash})
            if before:
                loader.restore(before[-1]["draws"], before[-1]["corrupt"])
            coming = stack.enter_context(closing(loader.steps(steps - len(before))))
            for number, step in enumerate(coming, len(before)):
                by_key = {
                    key: value
                    for part in distributed.all_gather(log_probs(step))
                    for key, value in part.items()
                }
                self._by_key |= by_key
                if file is not None:
                    cursor = {"draws": step.draws, "corrupt": step.corrupt}
                    file.write({"step": number, **cursor, "log_probs": by_key})
                advance(number + 1, "")
                if distributed.any_rank(stopped())[0]:
                    raise KeyboardInterrupt
        loader.restore(0)
