"""Typeset pages with known text.

>>> page, text, font = set_page("You can open a file from the menu ...", scene, (224, 112))
>>> text                                              # as much of the text as fits
'You can open a file'
"""

from PIL import Image

from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.scenes import Scene


def set_page(
    text: str, scene: Scene, size: tuple[int, int], *, heights: tuple[int, int] = (13, 17)
) -> tuple[Image.Image, str, str]:
    """Return (page, its text, its font): the first words of `text`, as many as fit `size`, in lines from the upper left
    corner. The font size is a random one of `heights` in pixels, or smaller if a word is long. Raises ValueError if not
    even the first word fits."""
    paper, name, margin = scene.paper(), scene.font(text), 6
    longest = max(text.split(), key=images.font(name, 32).getlength, default="")
    face = images.fitting(name, longest, size[0] - 2 * margin, scene.rng.randint(*heights))
    step = round(1.3 * face.size)
    lines: list[str] = []
    max_lines = (size[1] - 2 * margin) // step
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(longer) <= size[0] - 2 * margin:
            lines[-1] = longer
        elif len(lines) < max_lines and face.getlength(word) <= size[0] - 2 * margin:
            lines.append(word)
        else:
            break
    if not lines:
        raise ValueError(f"a page of {size[0]} x {size[1]} pixels can't hold {text.split()[:1]}")
    image, ink = images.sheet(size, paper), scene.ink(paper)
    for i, line in enumerate(lines):
        images.write_line(image, line, face, (margin, margin + i * step), ink)
    return image, " ".join(lines), name
