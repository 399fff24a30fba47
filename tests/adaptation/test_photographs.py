"""Photographs to adapt on: how they are divided, and what they look like."""

import random

import pytest
import torch

from timm_drnet.adaptation.adapt import drnet_to_adapt
from timm_drnet.adaptation.photographs import find_photographs
from timm_drnet.data.reading import image_loader


@pytest.fixture
def model(plain):
    """A cascade."""
    return drnet_to_adapt(plain, (64, 48))


def test_division(folder):
    found = find_photographs(folder, 0.3, seed=1)
    assert len(found.paths) == len(set(found.paths)) == 160
    assert found.held_out == 48
    assert found.paths == find_photographs(folder, 0.3, seed=1).paths
    assert found.paths != find_photographs(folder, 0.3, seed=2).paths
    limited = find_photographs(folder, 0.3, seed=1, limit=20)
    assert (len(limited.paths), limited.held_out) == (20, 6)


@pytest.mark.parametrize(('classes', 'class_map', 'known'), [
    (5, None, True), (6, None, False), (9, {'b': 7, 'c': 2}, True)])
def test_labels_where_the_folders_are_the_classes(folder, classes, class_map, known):
    found = find_photographs(folder, 0.3, 1, num_classes=classes, class_map=class_map)
    assert bool(found.labels) == known
    wanted = class_map or {name: i for i, name in enumerate('abcde')}
    assert all(label == wanted[path.parent.name] for path, label in found.labels.items())
    assert {path.parent.name for path in found.paths} == set(wanted)


def test_evaluation_shows_images_as_all_commands_see_them(folder, model):
    found = find_photographs(folder, 0.3, 1, num_classes=5)
    load = image_loader(model)
    images = torch.cat(list(found.evaluation(model, batch_size=8)))
    assert torch.equal(images, torch.stack([load(path) for path in found.paths[:48]]))
    pairs = list(found.labelled(model, everything=True, batch_size=60))
    assert [len(labels) for _, labels in pairs] == [60, 60, 40]
    assert torch.cat([labels for _, labels in pairs]).tolist() == [found.labels[path] for path in found.paths]


@pytest.mark.parametrize('workers', [0, 2])
def test_views_come_again_with_their_seed(folder, model, workers):
    found = find_photographs(folder, 0.3, 1)
    before = random.getstate(), torch.get_rng_state()
    one, other = (list(found.views(model, seed, 16, workers)) for seed in (3, 4))
    again = list(found.views(model, 3, 16, workers=1 - workers // 2))
    assert [len(x) for x in one] == [16] * 7  # of 112; those left over are left out
    assert torch.equal(torch.cat(one), torch.cat(again))
    assert not torch.equal(torch.cat(one), torch.cat(other))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_unreadable_files_are_skipped_and_named(folder, model, tmp_path):
    for i, path in enumerate(sorted(folder.rglob('*.png'))[:10]):
        (tmp_path / f'{i}.png').write_bytes(path.read_bytes() if i % 3 else b'no image')
    found = find_photographs(tmp_path, 0.5, 1)
    seen = sum(map(len, found.evaluation(model, everything=True, batch_size=4)))
    assert seen == 6
    assert {path.name for path in found.unreadable} == {'0.png', '3.png', '6.png', '9.png'}


def test_an_unreadable_photograph_does_not_take_its_batch_along(folder, model, tmp_path):
    """Of 32 to tune on, in two batches, one is damaged."""
    for i, path in enumerate(sorted(folder.rglob('*.png'))[:40]):
        (tmp_path / f'{i:02d}.png').write_bytes(path.read_bytes())
    found = find_photographs(tmp_path, 0.2, 1)
    found.paths[20].write_bytes(b'no image')
    assert sorted(map(len, found.views(model, seed=0, batch_size=16))) == [15, 16]


@pytest.mark.parametrize(('held_out', 'limit', 'message'), [
    (0, None, 'Invalid held_out 0'), (1.0, None, 'Invalid held_out 1.0'), (0.3, 5, 'Too few images: 5 leave 2')])
def test_bad_divisions(folder, held_out, limit, message):
    if limit:
        find_photographs(folder, held_out, 1, limit=7)
        held_out = 0.1
        message = 'Too few images: 5 leave 0'
    with pytest.raises(ValueError, match=message):
        find_photographs(folder, held_out, 1, limit=limit)
