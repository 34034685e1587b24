"""Direct preference optimisation: training makes the chosen answer more probable than the rejected one, relative to the
model at the start of the stage (text_4_align, reasoning_3_dpo; report 2.2.2, 5.1).

A preference sample becomes two rows, always neighbours in the same pack::

    user 17 23 asst 44 51 end | user 17 23 asst 60 end        even sequences: chosen, odd: rejected
                    ^^^^^^^^^                   ^^^^^^        only the last answer is compared

    loss = -log sigmoid(beta ((chosen - chosen_ref) - (rejected - rejected_ref))) + nll * mean NLL of chosen

where each term is the sum of an answer's log-probabilities. The second summand [ours] keeps the chosen answer probable:
the loss of DPO alone also falls when both become less probable, one faster than the other.

Reference log-probabilities of all answers are computed before the training. Then no second model stays in memory, and
later epochs need no second forward::

    reference.jsonl    {"step": -1, "of": "9c1e..."}                              hash of the start
                       {"step": 0, "draws": 37, "corrupt": 0, "log_probs": {"4f0a...": -12.81}}

A row's key is a hash of its content (`Batch.keys`). A stage that is stopped meanwhile resumes after the last complete
line.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyphi.data.loader import Loader, StepRows
from polyphi.data.preferences import pair
from polyphi.data.sample import Sample
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.runtime import distributed, progress
from polyphi.train.interrupt import Interruptible
from polyphi.train.loss import head_of, owners, token_losses
from polyphi.train.stage import HasTokenizer
from polyphi.types.batch import Batch

REFERENCE = "reference.jsonl"
PAIR_METRICS = ("accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_nll")


def key(row: Batch) -> str:
    """Hash of a row's content: its tokens, which of them are supervised, and the encoders' inputs."""
    hasher = hashlib.sha256()
    values = (tensor for inputs in row.inputs.values() for tensor in inputs.identity)
    for tensor in (row.ids, row.supervised, *values):
        if tensor is not None:
            hasher.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().data)
    return hasher.hexdigest()[:32]


def answer_log_probs(model: PhiModel, batch: Batch) -> Float[Tensor, " S"]:
    """Summed natural log-probability of each sequence's supervised tokens, float32. The head runs at no other
    positions."""
    assert batch.labels is not None and batch.supervised is not None
    hidden = model(batch).index_select(0, batch.supervised)
    labels = batch.labels.index_select(0, batch.supervised)
    log_probs = -token_losses(hidden, head_of(model), labels)
    return hidden.new_zeros(batch.sequences, dtype=torch.float32).index_add(
        0, owners(batch, batch.supervised), log_probs
    )


def _without_adapters(model: PhiModel, batch: Batch) -> Float[Tensor, " S"]:
    return answer_log_probs(model, replace(batch, adapters=(None,) * batch.sequences))


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
        """Log-probabilities of a pack's sequences by key, computed by `model`, without storing them."""
        return dict(zip(batch.keys, self._answer_log_probs(model, batch).tolist(), strict=True))

    def add(self, by_key: Mapping[str, float]) -> None:
        """Store the log-probabilities of further rows, which `precompute` doesn't reach."""
        self._by_key |= by_key

    def precompute(
        self,
        loader: Loader,
        steps: int,
        log_probs: Callable[[StepRows], Mapping[str, float]],
        folder: Path,
        start: Mapping[str, Any],
        title: str,
    ) -> None:
        """Compute the log-probabilities of all rows of the first `steps` steps and write them to `folder`; `start`
        identifies the weights. `title` is shown. Raises KeyboardInterrupt after Ctrl-C, after a whole step."""
        start_hash = hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()
        first, *before = progress.read_metrics(folder / REFERENCE) or [{}]
        if first.get("of") != start_hash:
            before = []
        for record in before:
            self._by_key |= record["log_probs"]
        distributed.wait()  # all processes must have read the file before the first one changes it
        with ExitStack() as stack:
            interrupted = stack.enter_context(Interruptible())
            advance = stack.enter_context(
                progress.progress(title, steps, 0, distributed.rank() > 0)
            )
            file = None
            if distributed.rank() == 0:
                file = progress.Metrics(folder / REFERENCE, until=len(before) if before else -1)
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
                if distributed.any_rank(interrupted())[0]:
                    raise KeyboardInterrupt
        loader.restore(0)


@dataclass(frozen=True)
class DPO:
    """Direct preference optimization. `beta`: strength of the penalty for deviating from the reference. `nll`: weight
    of the chosen answer's mean negative log-likelihood per token. `reference`: the model at the start of the stage,
    with or without its adapters. `max_crops` bounds an image's crops."""

    beta: float = 0.1
    nll: float = 0.2
    reference: Literal["start", "adapters off"] = "start"
    max_crops: int | None = None

    def __repr__(self) -> str:
        """The arguments as text, without `max_crops` where it is None, as in the manifests of runs that were trained
        before it existed."""
        crops = "" if self.max_crops is None else f", max_crops={self.max_crops}"
        return f"DPO(beta={self.beta}, nll={self.nll}, reference={self.reference!r}{crops})"

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The rows [chosen, rejected] of a sample. Raises ValueError where the sample has no `meta["rejected"]`,
        doesn't end in an answer, or a row exceeds `context`."""
        rows = pair(sample, processor, context, adapter, self.max_crops)
        return [replace(row, keys=(key(row),)) for row in rows]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> None:
        """Return None: the objective has no auxiliary head."""

    def begin(self, model: PhiModel) -> References:
        """The reference log-probabilities, not computed yet."""
        return References(answer_log_probs if self.reference == "start" else _without_adapters)

    def loss(
        self,
        model: PhiModel,
        head: None,
        reference: Callable[[Batch], Float[Tensor, " S"]],
        batch: Batch,
    ) -> tuple[Tensor, int, dict[str, float]]:
        """(sum of losses over pairs, number of pairs, metrics as sums over pairs). An answer's reward is `beta` times
        its log-probability minus that of the reference: `chosen_reward` and `rejected_reward`, `margin`: their
        difference, `accuracy`: whether it is above 0. `chosen_nll`: per token. `reference` returns the reference
        log-probabilities of a pack's answers."""
        assert batch.sequences % 2 == 0, "a pack holds whole pairs"
        policy = answer_log_probs(model, batch)
        rewards = self.beta * (policy - reference(batch))
        chosen, rejected = rewards[0::2], rewards[1::2]
        margin = chosen - rejected
        assert batch.supervised is not None
        lengths = torch.bincount(owners(batch, batch.supervised), minlength=batch.sequences)[0::2]
        nll = -policy[0::2] / lengths.clamp(min=1)
        total = (self.nll * nll - F.logsigmoid(margin)).sum()
        metrics = ((margin > 0).float(), margin, chosen, rejected, nll)
        sums = torch.stack([metric.detach().sum() for metric in metrics]).tolist()
        return total, batch.sequences // 2, dict(zip(PAIR_METRICS, sums, strict=True))
