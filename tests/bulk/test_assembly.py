"""Answers that come in any order become shards, each image with one row, or none at all."""

import math

import pyarrow as pa
import pytest

from timm_drnet.bulk.assembly import Assembly, Meaning
from timm_drnet.bulk.listing import Footer, Listing
from timm_drnet.bulk.shards import ShardFolder

MEANING = Meaning(('a', 'b', 'c'), (64, 32), (2.5, 0.5), 2)


def answers(positions, best=0.5, began=7.0):
    """What a worker says: image n is of class n modulo 3, and every fifth is unreadable."""
    bad = [n % 5 == 0 for n in positions]
    return pa.table({
        'position': pa.array(positions, pa.int64()),
        'choice': pa.array([None if b else n % 2 for n, b in zip(positions, bad, strict=True)], pa.int32()),
        'classes': pa.array(
            [None if b else [n % 3, (n + 1) % 3] for n, b in zip(positions, bad, strict=True)], pa.list_(pa.int32())),
        'probabilities': pa.array([None if b else [best, 0.25] for b in bad], pa.list_(pa.float32())),
        'error': pa.array(['broken' if b else None for b in bad], pa.string()),
        'began': pa.array([began] * len(positions), pa.float64()),
    })


@pytest.fixture
def assembly():
    """Of 12 images, files and the rows 0 to 7 of a Parquet file, in shards of 5."""
    listing = Listing(['/a.jpg', '/b.jpg', '/c.parquet', '/d.jpg', '/e.jpg'], {'/c.parquet': Footer(8)})
    return Assembly(ShardFolder(None, 12, 5), listing, MEANING)


def test_shards_from_answers_in_any_order(assembly):
    assert list(assembly.add(answers([9, 6, 2], began=5.0))) == []
    assert list(assembly.add(answers([10]))) == []
    done = dict(assembly.add(answers([8, 11, 5, 7, 0])))
    assert sorted(done) == [1, 2]
    done |= dict(assembly.add(answers([4, 3, 1])))
    assembly.check_nothing_is_left()
    assert assembly.began == 5.0
    rows = [row for shard in range(3) for row in done[shard].to_pylist()]
    places = [('/a.jpg', None), ('/b.jpg', None), *(('/c.parquet', n) for n in range(8)),
              ('/d.jpg', None), ('/e.jpg', None)]
    for n, (row, place) in enumerate(zip(rows, places, strict=True)):
        bad = n % 5 == 0
        assert row == {
            'path': place[0], 'row': place[1], 'label': None if bad else 'abc'[n % 3],
            'class_index': None if bad else n % 3, 'probability': None if bad else 0.5,
            'resolution': None if bad else (64, 32)[n % 2], 'gflops': None if bad else (2.5, 0.5)[n % 2],
            'top_labels': None if bad else ['abc'[n % 3], 'abc'[(n + 1) % 3]],
            'top_class_indices': None if bad else [n % 3, (n + 1) % 3],
            'top_probabilities': None if bad else [0.5, 0.25], 'error': 'broken' if bad else None}


def test_image_that_never_comes(assembly):
    list(assembly.add(answers([0, 1, 2, 4])))
    with pytest.raises(RuntimeError, match=r'shards \[0\] never came'):
        assembly.check_nothing_is_left()


def test_image_that_comes_twice_does_not_stand_for_another(assembly):
    with pytest.raises(RuntimeError, match='Images 0 to 4 did not get one answer each'):
        list(assembly.add(answers([0, 1, 2, 2, 4])))


@pytest.mark.parametrize('best', [math.nan, math.inf])
def test_scores_that_are_not_finite(assembly, best):
    with pytest.raises(ValueError, match=r'scores for /b\.jpg that are not finite'):
        list(assembly.add(answers([0, 1, 2, 3, 4], best=best)))


def test_one_label():
    listing = Listing(['/a.jpg'] * 5)
    one = Assembly(ShardFolder(None, 5, 5), listing, Meaning(('a', 'b', 'c'), (64, 32), (2.5, 0.5), 1))
    [(_, table)] = one.add(answers([0, 1, 2, 3, 4]))
    assert table.column_names == [
        'path', 'row', 'label', 'class_index', 'probability', 'resolution', 'gflops', 'error']


def test_shard_without_a_readable_image():
    one = Assembly(ShardFolder(None, 1, 5), Listing(['/a.jpg']), MEANING)
    [(_, table)] = one.add(answers([0]))
    assert table.to_pylist()[0] == {**dict.fromkeys(table.column_names), 'path': '/a.jpg', 'error': 'broken'}
