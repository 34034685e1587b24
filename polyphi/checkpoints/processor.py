"""The processor that fits a checkpoint's model."""

from polyphi.model.config import ModelConfig
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import NoTokenizer, Tokenizer


def make_processor(config: ModelConfig, tokenizer: Tokenizer | None) -> Processor:
    """The processor with a model's crop sizes and placeholders; without a tokenizer, for token ids only. Raises
    ValueError if tokenizer and model don't match."""
    if tokenizer is None:
        tokenizer = NoTokenizer(
            config.decoder.vocab_size,
            config.decoder.eos_token_ids,
            config.vision.image_token_id if config.vision else None,
            config.audio.audio_token_id if config.audio else None,
        )
    tokenizer = tokenizer.within(config.decoder.vocab_size)
    for modality, config_id, tokenizer_id in (
        ("image", config.vision and config.vision.image_token_id, tokenizer.image_id),
        ("audio", config.audio and config.audio.audio_token_id, tokenizer.audio_id),
    ):
        if config_id is not None and config_id != tokenizer_id:
            raise ValueError(
                f"the {modality} placeholder has id {config_id} in config.json, but {tokenizer_id} in the tokenizer"
            )
    if config.vision is None:
        return Processor(tokenizer)
    return Processor(
        tokenizer, config.vision.crop_size, config.vision.patch_size, config.vision.max_crops
    )
