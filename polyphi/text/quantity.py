"""A number with its noun, for messages.

>>> quantity(1, "file"), quantity(1200, "file"), quantity(2, "entry", "entries")
('1 file', '1,200 files', '2 entries')
"""


def quantity(number: int, noun: str, plural: str | None = None) -> str:
    """The number and the noun in the form that it takes; `plural`, where it isn't the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
