"""A picture as the vision encoder reads it."""

import torch
from PIL import Image

from polyphi.batch import ImageInput, ImageLayout
from polyphi.processing import image


def cut(picture: Image.Image, **sizes: int) -> tuple[torch.Tensor, torch.Tensor, ImageLayout]:
    """(crops in [-1, 1], the global view first, then row by row; masks of valid patches; layout)."""
    made = image.cut(picture, image.plan(*picture.size, **sizes))
    seen = ImageInput(made.crops, made.view, made.masks, (made.layout,))
    return seen.float_crops().crops, made.masks, made.layout
