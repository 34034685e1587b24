"""The published vocabulary of 200,064 tokens: from the ranks of o200k_base, and its placeholders in that of
Phi-4-mini."""

import base64
import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path

from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import (
    AUDIO,
    CONTROLS,
    IMAGE,
    O200K_SPLIT,
    added_token,
    byte_characters,
    specification,
)

O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def from_ranks(path: str | Path) -> Tokenizer:
    """Return the published 200,064-token vocabulary from a file of o200k_base ranks (per line a token in base64 and
    its rank, as in tiktoken). Takes some seconds, so `save` it. Raises `ValueError` if the file's SHA-256 isn't the
    published one."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a file of o200k_base ranks, found nothing there")
    data = Path(path).read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != O200K_SHA256:
        raise ValueError(
            f"{path}: expected o200k_base ranks with SHA-256 {O200K_SHA256}, found {digest}"
        )
    pairs = (line.split() for line in data.splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[b] for b in token)

    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    merges = [[spell(a), spell(b)] for a, b in merges_of(ranks)]
    return Tokenizer(
        specification(vocabulary, merges, O200K_SPLIT, {t: c[0] for t, c in CONTROLS.items()})
    )


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the two tokens that each longer token is merged from, in order of rank: its bytes are merged by lower ranks
    until two parts remain. The few tokens that can't be merged so are matched as a whole (`ignore_merges`)."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best, position = rank, -1
            for i in range(len(parts) - 1):
                pair_rank = ranks.get(parts[i] + parts[i + 1], rank)
                if pair_rank < best:
                    best, position = pair_rank, i
            if position < 0:
                break
            parts[position : position + 2] = [parts[position] + parts[position + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def with_placeholders(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """A copy of a tokenizer with placeholders of images and audio if it has none (Phi-4-mini's): those of the
    published multimodal vocabulary, with its ids where these are unused, else the next ones. Raises ValueError if
    an embedding of `rows` rows has no unused ones for them."""
    spec = copy.deepcopy(dict(tokenizer.specification))
    used = {*tokenizer.controls.values(), *spec["model"]["vocab"].values()}
    for token, present in ((IMAGE, tokenizer.image_id), (AUDIO, tokenizer.audio_id)):
        if present is not None:
            continue
        id, special, strips = CONTROLS[token]
        if id in used or id >= rows:
            id = max(used) + 1
        if id >= rows:
            raise ValueError(
                f"the embedding has {rows} rows, which the tokenizer uses all; expected an unused one for {token}"
            )
        used.add(id)
        spec["added_tokens"].append(added_token(token, id, special, strips))
    if spec == tokenizer.specification:
        return tokenizer
    spec["added_tokens"].sort(key=lambda added: added["id"])
    return Tokenizer(spec, tokenizer.template)
