"""Direct preference optimisation: training makes the chosen answer more probable than the rejected one, relative to the
model at the start of the stage (text_4_align, reasoning_3_dpo; report 2.2.2, 5.1).

A preference sample becomes two rows, always neighbours in the same pack::

    user 17 23 asst 44 51 end | user 17 23 asst 60 end        even sequences: chosen, odd: rejected
                    ^^^^^^^^^                   ^^^^^^        only the last answer is compared

    loss = -log sigmoid(beta ((chosen - chosen_ref) - (rejected - rejected_ref))) + nll * mean NLL of chosen

where each term is the sum of an answer's log-probabilities. The second summand [ours] keeps the chosen answer probable:
the loss of DPO alone also falls when both become less probable, one faster than the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.data.preferences import pair
from polyphi.data.sample import Sample
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.loss import head_of, owners, token_losses
from polyphi.train.objective import HasTokenizer
from polyphi.train.reference import References, key


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


@dataclass(frozen=True)
class DPO:
    """`beta`: strength of the penalty for deviating from the reference. `nll`: weight of the chosen answer's mean
    negative log-likelihood per token. `reference`: the model at the start of the stage, with or without its
    adapters. `max_crops` bounds an image's crops."""

    beta: float = 0.1
    nll: float = 0.2
    reference: Literal["start", "adapters off"] = "start"
    max_crops: int | None = None
    whole_step: ClassVar[bool] = False

    def __repr__(self) -> str:
        """Without `max_crops` where it is None, as in the manifests of runs that were trained before it existed."""
        crops = "" if self.max_crops is None else f", max_crops={self.max_crops}"
        return f"DPO(beta={self.beta}, nll={self.nll}, reference={self.reference!r}{crops})"

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """[chosen, rejected]. Raises ValueError where the sample has no `meta["rejected"]`, doesn't end in an answer,
        or a row exceeds `context`."""
        rows = pair(sample, processor, context, adapter, self.max_crops)
        return [replace(row, keys=(key(row),)) for row in rows]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> None:
        """No auxiliary head."""

    def begin(self, model: PhiModel) -> References:
        """The reference log-probabilities, not computed yet."""
        return References(answer_log_probs if self.reference == "start" else _without_adapters)

    def loss(
        self,
        model: PhiModel,
        module: None,
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
        metrics = {
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_nll": nll,
        }
        sums = torch.stack([metric.detach().sum() for metric in metrics.values()]).tolist()
        return total, batch.sequences // 2, dict(zip(metrics, sums, strict=True))
