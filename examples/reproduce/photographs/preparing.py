"""Data and weights to start from: photographs held out of the training set, and the network that ships, plain."""

from pathlib import Path

import timm
from safetensors.torch import save_file

import timm_drnet

HELD_OUT = 10
"""Every so-manieth training photograph of a class is held out, to set thresholds on."""
CLASSES = 101


def prepare(source: Path, data: Path, work: Path) -> dict[str, int]:
    """Divide photographs, by links to them, and write the weights of the plain network.

    Args:
        source: A folder with ``train`` and ``val``, in each of these a folder for each class.
        data: For the folders ``train``, ``held`` and ``val``, and ``seen``: as many of those trained on as are held.
        work: Of the driver; for ``plain.safetensors``.

    Returns:
        The number of photographs in each folder.

    Raises:
        FileNotFoundError: If there is no such folder, or a class has nothing to hold out.
    """
    counts: dict[str, int] = {}

    def link(part: str, file: Path) -> None:
        place = data / part / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(file.resolve())
        counts[part] = counts.get(part, 0) + 1

    for split in ('train', 'val'):
        for folder in sorted((source / split).iterdir()):
            files = sorted(folder.iterdir())
            for i, file in enumerate(files):
                held = split == 'train' and i % HELD_OUT == 0
                link('held' if held else split, file)
                if split == 'train' and i % HELD_OUT == 1:
                    link('seen', file)
    work.mkdir(parents=True, exist_ok=True)
    save_file(plain_weights(), work / 'plain.safetensors')
    return counts


def plain_weights() -> dict[str, object]:
    """Those of the model that ships, for timm's tf_efficientnet_lite0."""
    start = timm.create_model(timm_drnet.DEFAULT_MODEL, pretrained=True)
    found = {name: value.clone() for name, value in start.branch(0).state_dict().items()}
    timm.create_model('tf_efficientnet_lite0').load_state_dict(found)  # or they would be those of another network
    return found
