"""The processor that fits a checkpoint's model."""

from polyphi.model.config import ModelConfig
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import NoTokenizer, Tokenizer


def make_processor(config: ModelConfig, tokenizer: Tokenizer | None) -> Processor:
    """The processor with a model's crop sizes, placeholders and end tokens; without a tokenizer, for token ids only.
    Raises ValueError if tokenizer and model don't match."""
    ids = config.without_further().placeholders
    if tokenizer is None:
        tokenizer = NoTokenizer(config.decoder.vocab_size, config.decoder.eos_token_ids, ids)
    tokenizer = tokenizer.within(config.decoder.vocab_size).with_ends(config.decoder.eos_token_ids)
    for modality, id in ids.items():
        if id != tokenizer.placeholders.get(modality):
            raise ValueError(
                f"the {modality} placeholder has id {id} in config.json, but "
                f"{tokenizer.placeholders.get(modality)} in the tokenizer"
            )
    if config.vision is None:
        return Processor(tokenizer, has_images=False)
    return Processor(
        tokenizer, config.vision.crop_size, config.vision.patch_size, config.vision.max_crops
    )
