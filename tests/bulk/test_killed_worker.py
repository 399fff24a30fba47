"""A worker is killed in the middle of a run: every image has its one row, and it is the right one."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from processes import processes_below

import timm_drnet
from timm_drnet.bulk.run import classify_bulk
from timm_drnet.data.reading import image_loader

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))
IMAGES = 480
SHARD_SIZE = 40
SIDE = 72
MARGIN = 1e-3  # between scores, as a part of their spread: more than rounding brings about

pytestmark = pytest.mark.skipif(not Path('/proc/self/cmdline').exists(), reason='needs /proc')


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Parts of the example photographs, no two alike."""
    folder = tmp_path_factory.mktemp('photographs')
    originals = [Image.open(path).convert('RGB') for path in PHOTOS]
    generator = torch.Generator().manual_seed(0)
    seen = set()
    while len(seen) < IMAGES:
        number, left, top = torch.rand(3, generator=generator).tolist()
        original = originals[int(number * len(originals))]
        left, top = int(left * (original.width - SIDE)), int(top * (original.height - SIDE))
        if (key := (int(number * len(originals)), left, top)) not in seen:
            original.crop((left, top, left + SIDE, top + SIDE)).save(folder / f'{len(seen):04d}.jpg')
            seen.add(key)
    return folder


@pytest.fixture(scope='module')
def model(make_spread, photographs):
    """A model whose choices and answers differ between the photographs."""
    load = image_loader(timm_drnet.create_drnet('test_resnet', resolutions=(64, 48, 32)))
    return make_spread(torch.stack([load(photographs / f'{n:04d}.jpg') for n in range(100)]), 10)


@pytest.fixture(scope='module')
def expected(model, photographs):
    """What one undisturbed process says: scores of the resolutions, choices and probabilities."""
    load = image_loader(model)
    scores, probabilities = [], []
    with torch.inference_mode():
        for first in range(0, IMAGES, 120):
            x = torch.stack([load(photographs / f'{n:04d}.jpg') for n in range(first, first + 120)])
            scores.append(model.predictor_scores(x))
            probabilities.append(model.forward_at(x, scores[-1].argmax(dim=1)).softmax(dim=1))
    return torch.cat(scores), torch.cat(probabilities)


class Killer(threading.Thread):
    """Kills the one worker of this process's Ray when some shards are done."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder = folder
        self.shards = None
        self.done = threading.Event()

    def run(self):
        while not self.done.is_set():
            shards = len(list(self.folder.glob('shard-*.parquet')))
            if shards >= 2:
                [victim] = self.workers()
                os.kill(victim, signal.SIGKILL)
                self.shards = shards
                return
            time.sleep(0.01)

    def workers(self):
        """The processes that classify, by the title that Ray gives them."""
        found = set()
        for pid in processes_below(os.getpid()):
            try:
                title = Path(f'/proc/{pid}/cmdline').read_bytes()
            except OSError:
                continue
            if title.startswith(b'ray::') and b'ClassifyingWorker' in title:
                found.add(pid)
        return found


@pytest.mark.slow
def test_killed_worker_loses_and_changes_nothing(ray_here, model, photographs, expected, tmp_path):
    out = tmp_path / 'out'
    killer = Killer(out)
    killer.start()
    try:
        report = classify_bulk(model, [photographs], out, batch_size=4, shard_size=SHARD_SIZE, workers=1)
    finally:
        killer.done.set()
        killer.join()

    # It has happened, in the middle, and another did the rest.
    assert 2 <= killer.shards < IMAGES // SHARD_SIZE
    assert report.replaced_workers == 1

    rows = pq.read_table(out).to_pylist()
    assert Counter(row['path'] for row in rows) == Counter(str(photographs / f'{n:04d}.jpg') for n in range(IMAGES))
    assert [row['path'] for row in rows] == [str(photographs / f'{n:04d}.jpg') for n in range(IMAGES)]
    assert all(row['error'] is None for row in rows)
    assert (report.images, report.new_images, report.unreadable) == (IMAGES, IMAGES, 0)

    scores, probabilities = expected
    margin = MARGIN * float(scores.std())
    sure = 0
    for row, score, probability in zip(rows, scores, probabilities, strict=True):
        best, second = score.topk(2).values.tolist()
        if best - second < margin:  # the choice depends on the rounding
            continue
        assert row['resolution'] == model.resolutions[int(score.argmax())]
        assert row['probability'] == pytest.approx(float(probability.max()), abs=1e-3)
        assert float(probability[row['class_index']]) == pytest.approx(row['probability'], abs=1e-3)
        assert row['label'] == str(row['class_index'])
        sure += 1
    assert sure > 0.98 * IMAGES
    shares = torch.bincount(scores.argmax(dim=1), minlength=3) / IMAGES
    assert shares.max() < 0.9, 'the images are to be spread over the resolutions'
    assert torch.bincount(probabilities.argmax(dim=1), minlength=10).max() < 0.9 * IMAGES, 'and over the classes'
