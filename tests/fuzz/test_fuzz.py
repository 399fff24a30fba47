"""The fuzz targets on what was found with them, and on some mutations of their seeds."""

import json
import random

import pytest

from . import export_manifest, mindspore_checkpoint

TARGETS = [export_manifest, mindspore_checkpoint]


def changed(place, value, seed=0):
    """A manifest with another value in one place."""
    manifest = json.loads(export_manifest.SEEDS[seed])
    *groups, key = place
    node = manifest
    for group in groups:
        node = node[group]
    node[key] = value
    return json.dumps(manifest).encode()


FOUND = [
    (export_manifest, changed(['format_version'], 10 ** 400)),  # a message of 500 letters
    (export_manifest, changed(['preprocessing', 'input_size'], [3, 64.0, 64])),  # a side that is no int
    (export_manifest, changed(['files', 'branches', 0, 'size'], 10 ** 400)),  # again
    (export_manifest, changed(['preprocessing', 'crop_pct'], 65, seed=1)),  # a division by zero
    # a name with a line feed in the message
    (mindspore_checkpoint, mindspore_checkpoint.SEEDS[2].replace(b'bn1.gamma', b'b\x11\n.gamma')),
]


@pytest.mark.parametrize(('target', 'data'), FOUND)
def test_what_was_found_stays_mended(target, data):
    target.check(data)


@pytest.mark.parametrize('target', TARGETS, ids=lambda target: target.__name__.rpartition('.')[2])
def test_mutations_are_read_or_refused(target):
    rng = random.Random(0)
    for seed in target.SEEDS:
        target.check(seed)
        for _ in range(40):
            target.check(target.mutate(seed, rng))
