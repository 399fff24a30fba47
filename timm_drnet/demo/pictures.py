"""Pictures as parts of a page."""

import base64
import io

import torch
from PIL import Image


def pixels_as_png(pixels: torch.Tensor) -> str:
    """A PNG of pixels, (C, S, S) between 0 and 1, as a data URI."""
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    return data_uri(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values), 'PNG')


def data_uri(image: Image.Image, kind: str) -> str:
    """An image in a format of Pillow's as a data URI."""
    file = io.BytesIO()
    image.save(file, kind)
    return f'data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode("ascii")}'
