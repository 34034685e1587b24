"""What the model that a stage starts from says of the answers that the stage will read, worked out before anything
learns: then no second model stays in memory, and later epochs don't ask again.

    reference.jsonl    {"step": -1, "of": "9c1e..."}                                          which run it belongs to
                       {"step": 0, "draws": 37, "corrupt": 0, "said": {"4f0a...": -12.81}}    sums of log-probabilities

A row is known by its content (`Batch.keys`). A stage that is stopped meanwhile goes on after the last whole line.
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
from polyphi.data.loader import Loader, Step
from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed
from polyphi.runtime.progress import Metrics, read_metrics

REFERENCE = "reference.jsonl"


def key(row: Batch) -> str:
    """A row's content: its tokens, which of them are answers, and its media as encoders see them."""
    hasher = hashlib.sha256()
    for tensor in (row.ids, row.supervised, row.crops, row.crop_masks, row.mels):
        if tensor is not None:
            hasher.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().data)
    return hasher.hexdigest()[:32]


class References:
    """What was said, by row: called with a pack, it gives that of each sequence. `answer(model, batch)` asks."""

    def __init__(self, answer: Callable[[PhiModel, Batch], Float[Tensor, " S"]]) -> None:
        self._answer = answer
        self._said: dict[str, float] = {}

    def __call__(self, batch: Batch) -> Float[Tensor, " S"]:
        """KeyError where nobody asked about one of them."""
        return torch.tensor([self._said[k] for k in batch.keys], device=batch.ids.device)

    def ask(self, model: PhiModel, batch: Batch) -> dict[str, float]:
        """What a model says of a pack's sequences. That is remembered only after `look_ahead`."""
        return dict(zip(batch.keys, self._answer(model, batch).tolist(), strict=True))

    def look_ahead(
        self,
        loader: Loader,
        steps: int,
        answers: Callable[[Step], Mapping[str, float]],
        folder: Path,
        start: Mapping[str, Any],
        *,
        advance: Callable[[int, str], None],
        stopped: Callable[[], bool],
    ) -> None:
        """Ask of all that the first `steps` steps will read, and keep it in `folder`; `start` says whom. Raises
        KeyboardInterrupt where `stopped`, after a whole step."""
        of = hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()
        first, *before = read_metrics(folder / REFERENCE) or [{}]
        if first.get("of") != of:
            before = []
        for record in before:
            self._said |= record["said"]
        distributed.wait()  # until all have read what the first now changes
        with ExitStack() as stack:
            file = None
            if distributed.rank() == 0:
                file = Metrics(folder / REFERENCE, until=len(before) if before else -1)
                stack.callback(file.close)
                if not before:
                    file.write({"step": -1, "of": of})
            if before:
                loader.restore(before[-1]["draws"], before[-1]["corrupt"])
            coming = stack.enter_context(closing(loader.steps(steps - len(before))))
            for number, step in enumerate(coming, len(before)):
                said = {
                    k: v for told in distributed.everyones(answers(step)) for k, v in told.items()
                }
                self._said |= said
                if file is not None:
                    place = {"draws": step.draws, "corrupt": step.corrupt}
                    file.write({"step": number, **place, "said": said})
                advance(number + 1, "")
                if distributed.anyone(stopped())[0]:
                    raise KeyboardInterrupt
        loader.restore(0)
