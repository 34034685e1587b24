"""The tokenizer of a run: that of the decoder's part, o200k_base for a size without a vocabulary, else one that is
trained on the run's text corpora."""

from collections.abc import Iterator

from polyphi.data.shards import Shards
from polyphi.processing.item_reader import ItemReader
from polyphi.processing.processor import Processor
from polyphi.processing.published_vocabulary import from_ranks
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import WORD_SPLIT
from polyphi.runtime.files import cache_folder, whole_folder
from polyphi.types.tools import CALL, CALL_END
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.raw import packages
from polyphi_recipe.recipe.recipe import Recipe

CORPORA = (
    "copying",
    "instructions",
    "image_qa",
    "documents",
    "translation",
    "math",
    "code",
    "tools",
    "preferences",
)
"""The built-in corpora on which a tokenizer is trained."""


def corpora_of(recipe: Recipe) -> list[str]:
    """The corpora of text on which the tokenizer is trained: the built-in ones, or those of the text stages; none for a
    tokenizer that exists already."""
    if "decoder" in recipe.parts or not recipe.size.vocabulary:
        return []
    if recipe.is_built_in:
        return list(CORPORA)
    mixes = [recipe.stages[name].data.weights for name in ("text_1_pretrain", "text_3_post")]
    return list(dict.fromkeys(name for mix in mixes for name in mix))


def build(recipe: Recipe, folder: RunFolder) -> None:
    """Write the tokenizer, unless it exists, after its corpora."""
    with folder.exclusive("tokenizer"):
        if folder.tokenizer.exists():
            return
        with folder.timings.clock("tokenizer"):
            if (decoder := recipe.parts.get("decoder")) is not None:
                tokenizer = decoder.new_tokenizer()
            elif recipe.size.vocabulary:
                texts = _texts(recipe, folder)
                tokenizer = Tokenizer.train(texts, recipe.size.vocabulary, WORD_SPLIT)
            else:
                tokenizer = from_ranks(packages.o200k_base(cache_folder()))
            with whole_folder(folder.tokenizer) as partial:
                tokenizer.save(partial)


def _texts(recipe: Recipe, folder: RunFolder) -> Iterator[str]:
    for name in corpora_of(recipe):
        for sample in Shards(folder.data / name / "train"):
            for message in sample.messages:
                # The marks of a call are control tokens, which need no merges.
                yield message.text.replace(CALL, "").replace(CALL_END, "")


def load(recipe: Recipe, folder: RunFolder) -> Tokenizer:
    """The tokenizer in a run's folder, with placeholders for users' modalities."""
    tokenizer, further = Tokenizer.load(folder.tokenizer), recipe.size.model.further
    decoder = recipe.parts.get("decoder")
    rows = getattr(decoder and decoder.config, "vocab_size", tokenizer.vocab_size)
    for name, id in zip(further, tokenizer.unused_ids(rows), strict=False):
        tokenizer = tokenizer.with_placeholder(name, id)
    return tokenizer


def load_processor(recipe: Recipe, folder: RunFolder) -> Processor:
    """The processor of a run, with the tokenizer in its folder."""
    tokenizer, vision = load(recipe, folder), recipe.size.model.vision
    assert vision is not None
    processor = Processor(
        tokenizer,
        crop_size=vision.crop_size,
        patch_size=vision.patch_size,
        max_crops=vision.max_crops,
    )
    for name, own in recipe.size.model.further.items():
        processor.add(ItemReader(own.modality), tokenizer.placeholder(name), own.modality.routes)
    return processor
