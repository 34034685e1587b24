"""What a training objective provides: rows of a sample, an auxiliary head, a reference, the loss of a pack.

`NextToken` (loss.py), `DPO` (preference.py), `Contrastive` (contrastive.py) and `AttentionDecoder` (aed.py) have this
protocol.
"""

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from polyphi.batch import Batch
from polyphi.data.sample import Sample
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor


class Vocabulary(Protocol):
    """The part of a tokenizer that auxiliary heads need."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def encode(self, text: str, /) -> list[int]:
        """Token ids of a text."""


class HasTokenizer(Protocol):
    """The part of a processor that auxiliary heads need."""

    @property
    def tokenizer(self) -> Vocabulary:
        """The model's tokenizer."""


class Objective(Protocol):
    """A training objective. Its `repr` is part of a run's identity: equal settings must give equal text."""

    whole_step: ClassVar[bool]
    """Whether a step's samples are compared with each other: then they form one pack, on every process."""

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The sample as rows of at most `context` tokens each. Raises `Unfit` or `TooLong` for a sample that can't be
        used."""

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> nn.Module | None:
        """The auxiliary head, a module that is trained with the model and not exported; None for no head."""

    def begin(self, model: PhiModel) -> Any:
        """The reference, computed from the model before training, that `loss` needs; None for no reference."""

    def loss(
        self, model: Any, module: Any, state: Any, batch: Batch
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """(sum of losses over the pack's units, number of units, metrics). `model` is a `PhiModel` or its view of a
        part of each pack (`parallel.Context`), `module` the auxiliary head, `state` the reference. A metric is a sum
        over units, or a pair of a sum and its own count."""
