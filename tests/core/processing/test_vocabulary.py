"""Merges of a vocabulary that is stored as ranks."""

from polyphi.processing.published_vocabulary import merges_of
from polyphi.processing.vocabulary import byte_characters


def test_a_token_is_merged_from_the_two_parts_of_lower_ranks() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for rank, token in enumerate((b"ab", b"abab", b"abc", b"zzzz"), 256):
        ranks[token] = rank
    # No lower rank merges a part of the last one: it is matched as a whole.
    assert list(merges_of(ranks)) == [(b"a", b"b"), (b"ab", b"ab"), (b"ab", b"c")]


def test_each_byte_has_a_printable_character() -> None:
    characters = byte_characters()
    assert len(set(characters)) == 256 and all(c.isprintable() for c in characters)
    assert characters[ord("a")] == "a" and characters[ord(" ")] == "Ġ"
