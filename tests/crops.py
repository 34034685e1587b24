"""A picture as the vision encoder reads it."""

import torch
from PIL import Image

from polyphi.batch import ImageLayout, float_crops, row
from polyphi.processing import image


def cut(picture: Image.Image, **sizes: int) -> tuple[torch.Tensor, torch.Tensor, ImageLayout]:
    """(crops in [-1, 1], the global view first, then row by row; masks of valid patches; layout)."""
    made = image.cut(picture, **sizes)
    seen = row([0], crops=made.crops, views=made.view, crop_masks=made.masks, images=(made.layout,))
    return float_crops(seen).crops, made.masks, made.layout
