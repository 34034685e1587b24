"""The size of a vocabulary, for auxiliary heads that are built without a tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VocabularyOnly:
    """A placeholder for a processor and its tokenizer (`polyphi.train.stage.HasTokenizer`): every text is one token."""

    vocab_size: int

    @property
    def tokenizer(self) -> "VocabularyOnly":
        """The object itself, which also has the methods of a tokenizer."""
        return self

    def encode(self, text: str, /) -> list[int]:
        """Return one id for any text."""
        return [0]
