"""Quality rules of Gopher, C4 and FineWeb for raw documents, by datatrove's filters, in eight languages.

    rule                              en   fr it pt es de        zh ja
    Gopher: words, 50 to 100,000      yes  yes                   a character is a word: 80 to 170,000
    Gopher: mean length of words      yes  yes                   off: it would always be 1
    Gopher: # and ... per word, bullets, lines that end in ..., words with letters: everywhere
    Gopher: two frequent words        yes  our list of each      our list of characters
    Gopher: repeated lines and paragraphs                        everywhere
    Gopher: repeated n-grams          yes  yes                   n is twice as long: a word is two characters or so
    C4: 5 sentences, no {, no lorem ipsum, no line about Javascript: everywhere
    C4: lines of 3 words or more      yes  yes                   off: a line without spaces is one word to C4
    C4: lines about cookies           yes  the phrases are English: they find nothing
    C4: lines must end in a full stop off, as in FineWeb: headings and lists are lost by it
    FineWeb: 12 % of lines end in a full stop (every script's)   everywhere
    FineWeb: short lines, 30 chars    yes  yes                   15: a character says two to three times as much
    FineWeb: repeated lines, 1 %      everywhere
    FineWeb: new lines per word, 0.3  yes  yes                   0.15 per character

Thresholds without a remark are those of the papers, which are datatrove's defaults. They are for prose: code and
conversations skip them (C4 drops every page with a curly bracket, and one word can be a right answer).

datatrove splits words by spaCy, in Chinese and Japanese with dictionaries; `Words` needs neither.
"""

import re
from functools import cache
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.word_tokenizers import WordTokenizer

from polyphi.text.scripts import HAN, KANA, UNSPACED
from polyphi_recipe.filters.language import language_of
from polyphi_recipe.pipeline.documents import edit, note
from polyphi_recipe.text.lexicon import LANGUAGES

FREQUENT = {
    "en": "the be to of and that have with",  # Gopher's own
    "fr": "le la les de des et à est que pour dans une",
    "de": "der die das und zu in ist von mit den nicht ein",
    "it": "il la di e che per un in è non una con",
    "pt": "o a de e que para um em é não uma com",
    "es": "el la de y que para un en es no una con",
    "zh": "的 是 在 不 了 和 有 一 这 以",
    "ja": "の に は を た が で て と し",
}
"""A text of the language contains at least two of these words; characters in Chinese and Japanese."""

_WORD = re.compile(rf"[{HAN}{KANA}]|[^\W{HAN}{KANA}]+(?:['’-][^\W{HAN}{KANA}]+)*|[^\w\s]")
_SENTENCE = re.compile(r"[^.!?。！？｡]+[.!?。！？｡]*")


class Words(WordTokenizer):
    """Words between spaces and punctuation, each Chinese or Japanese character separate; sentences end at full
    stops."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return words and punctuation marks in order."""
        return _WORD.findall(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return (start, end) of each sentence."""
        return [m.span() for m in _SENTENCE.finditer(text) if m[0].strip()]

    def sent_tokenize(self, text: str) -> list[str]:
        """Return sentences in order."""
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]


@cache
def rules(language: str) -> dict[str, BaseFilter]:
    """Return the four filters for a language. Gopher's is the first: a short text would break the others' rules,
    too."""
    if language not in LANGUAGES:
        raise ValueError(
            f"rules are set for {', '.join(LANGUAGES)}, found {language!r}; "
            "put the step LanguageFilter before this one"
        )
    words, frequent = Words(), FREQUENT[language].split()
    if language not in UNSPACED:
        return {
            "gopher": GopherQualityFilter(stop_words=frequent, language=words),
            "repetition": GopherRepetitionFilter(language=words),
            "c4": C4QualityFilter(filter_no_terminal_punct=False, language=words),
            "fineweb": FineWebQualityFilter(language=words),
        }
    # datatrove joins n-grams by spaces before it measures the most frequent one: 2n - 1 characters for n.
    top = tuple((2 * n, share * (4 * n - 1) / (2 * n)) for n, share in _TOP)
    repeated = tuple((2 * n, share) for n, share in _REPEATED)
    return {
        "gopher": GopherQualityFilter(
            min_doc_words=80,
            max_doc_words=170_000,
            min_avg_word_length=None,
            max_avg_word_length=None,
            stop_words=frequent,
            language=words,
        ),
        "repetition": GopherRepetitionFilter(top_n_grams=top, dup_n_grams=repeated, language=words),
        "c4": C4QualityFilter(
            filter_no_terminal_punct=False,
            min_words_per_line=-1,
            max_word_length=-1,
            language=words,
        ),
        "fineweb": FineWebQualityFilter(short_line_length=15, new_line_ratio=0.15, language=words),
    }


_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
_REPEATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
"""Gopher's table A1: n and the share of characters."""


def judge(text: str, language: str) -> tuple[str, str]:
    """Return (the reason to drop the text, or ""; the text without the lines that C4 removes).

    >>> judge("Click here. " * 99, "en")[0]
    'gopher_below_alpha_threshold'
    """
    copy = Document(text, "")
    for name, rule in rules(language).items():
        keep, reason = get_filter_result(rule.filter(copy))
        if not keep:
            return f"{name}_{str(reason).removeprefix('gopher_')}", text
        if not copy.text:
            return f"{name}_empty", text
    return "", copy.text


class QualityRulesFilter(BaseFilter):
    """Drops raw documents that break a rule of their language, with the rule as the reason, and removes the lines that
    C4 removes. Conversations pass unread. Needs a language: that which the step `LanguageFilter` found, or
    `meta["language"]`."""

    name, type = "Rules", "FILTER"

    def __init__(self, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(exclusion_writer)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the broken rule."""
        messages: list[dict[str, Any]] = doc.metadata["sample"]["messages"]
        if [m["role"] for m in messages] != ["document"]:
            return True
        reason, filtered = judge(doc.text, language_of(doc))
        removed_lines = doc.text.count("\n") - filtered.count("\n")
        note(doc, "rules", broken=reason, lines_left_out=removed_lines)
        if reason:
            return False, reason
        if len(messages[0]["parts"]) == 1 and filtered != doc.text:
            edit(doc, lambda _: filtered)
        return True
