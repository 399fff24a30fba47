"""Pictures that tests draw."""

import random

import torch
from PIL import Image


def draw_blots(root, number, classes=('',)):
    """Write photographs of coloured blots, no two alike, into the folders of classes in turn.

    Args:
        root: The folder; it is created.
        number: How many.
        classes: Names of folders below it.
    """
    draw = random.Random(0)
    for i in range(number):
        image = Image.new('RGB', (80, 72), tuple(draw.randrange(256) for _ in range(3)))
        for _ in range(6):
            box = draw.randrange(70), draw.randrange(60)
            size = draw.randrange(8, 40), draw.randrange(8, 40)
            image.paste(tuple(draw.randrange(256) for _ in range(3)), (*box, box[0] + size[0], box[1] + size[1]))
        place = root / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f'{i:03}.png')


def noise(i, number):
    """The i-th of some pictures of smooth noise, each brighter than the one before it."""
    pixels = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(i)) * (i + 1) / number * 252
    image = Image.fromarray(pixels.permute(1, 2, 0).byte().numpy())
    return image.resize((80, 70), Image.Resampling.BILINEAR)


def save_noise(root, number):
    """Write such pictures into the folders of three classes; the label of the i-th is i % 3."""
    for i in range(number):
        path = root / 'abc'[i % 3] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i, number).save(path)
