"""Token ids with placeholders of images and audio -> the pieces of a row.

>>> pieces_of([5, image_id, 7], {image_id: [processor.placeholder(Image("cat.png"), None)]})
"""

from collections.abc import Iterator, Mapping, Sequence

from polyphi.processing.reader import Placeholder
from polyphi.processing.template import TemplatePiece


def pieces_of(
    ids: Sequence[int], items: Mapping[int, Sequence[Placeholder]]
) -> list[tuple[TemplatePiece, Placeholder | None]]:
    """Return the pieces of ids; `items` are the images and audio by the id of their placeholder. Each has either one
    placeholder, or a run of as many as its tokens. Raises ValueError with both numbers otherwise."""
    remaining_items: dict[int, Iterator[Placeholder]] = {}
    is_expanded: dict[int, bool] = {}
    for id, own in items.items():
        placeholders, tokens = sum(i == id for i in ids), sum(item.tokens for item in own)
        if placeholders not in (len(own), tokens):
            raise ValueError(
                f"{len(own)} pictures or clips need {len(own)} placeholders of id {id}, or {tokens} once expanded; "
                f"found {placeholders}"
            )
        remaining_items[id], is_expanded[id] = iter(own), placeholders != len(own)
    pieces: list[tuple[TemplatePiece, Placeholder | None]] = []
    remaining = 0  # placeholders of the run
    for id in ids:
        if remaining:
            if id != pieces[-1][0].ids[0]:
                raise ValueError(
                    f"a run of placeholders of id {pieces[-1][0].ids[0]} ends {remaining} too early"
                )
            remaining -= 1
        elif id in remaining_items:
            item = next(remaining_items[id])
            pieces.append((TemplatePiece((id,), media=item.part), item))
            remaining = item.tokens - 1 if is_expanded[id] else 0
        else:
            pieces.append((TemplatePiece((id,)), None))
    if remaining:
        raise ValueError(
            f"the last run of placeholders of id {pieces[-1][0].ids[0]} ends {remaining} too early"
        )
    return pieces
