"""A picture as the vision encoder reads it."""

import torch
from PIL import Image

from polyphi.processing import image
from polyphi.types.inputs.image import ImageInput, ImageLayout


def cut(picture: Image.Image, **sizes: int) -> tuple[torch.Tensor, torch.Tensor, ImageLayout]:
    """(crops in [-1, 1], the global view first, then row by row; masks of valid patches; layout)."""
    crops, view, masks, layout = image.cut(picture, image.plan(*picture.size, **sizes))
    return (
        ImageInput(layouts=(layout,), crops=crops, views=view, masks=masks).ready().crops,
        masks,
        layout,
    )
