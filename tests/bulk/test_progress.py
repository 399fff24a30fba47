"""Progress on a stderr that is no terminal."""

import io
import sys

import pytest

from timm_drnet.bulk.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The time, which goes by when the test says so."""
    class Clock:
        now = 100.0

    monkeypatch.setattr('timm_drnet.bulk.progress.time.monotonic', lambda: Clock.now)
    return Clock


def test_a_line_now_and_then(clock, capsys):
    with Progress(10_000, 4_000, 10, 4, show=True) as shown:
        for n in range(101):  # the start takes half a minute, then 10 images come a second
            clock.now += 1 if n else 30
            shown.update(10)
            if n == 50:
                shown.shard()
    assert capsys.readouterr().err.splitlines() == [
        'classify: 4,000 of 10,000 images, 4 of 10 shards',
        'classify: 4,010 of 10,000 images, 4 of 10 shards',
        'classify: 4,310 of 10,000 images, 4 of 10 shards, 10.0 images/s, 09:29 left',
        'classify: 4,610 of 10,000 images, 5 of 10 shards, 10.0 images/s, 08:59 left',
        'classify: 4,910 of 10,000 images, 5 of 10 shards, 10.0 images/s, 08:29 left',
    ]


def test_one_image(clock, capsys):
    with Progress(1, 0, 1, 0, show=True):
        pass
    assert capsys.readouterr().err == 'classify: 0 of 1 image, 0 of 1 shard\n'


class Full(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize('stderr', [None, Full()])
def test_nobody_reads_it(clock, monkeypatch, stderr):
    monkeypatch.setattr(sys, 'stderr', stderr)
    with Progress(10, 0, 1, 0, show=True) as shown:
        clock.now += 100
        shown.update(10)


def test_not_shown(clock, capsys):
    with Progress(10, 0, 1, 0, show=False) as shown:
        clock.now += 100
        shown.update(10)
    assert capsys.readouterr() == ('', '')
