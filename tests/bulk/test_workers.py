"""What a worker does apart from Ray: it says what it begins before it opens the first image."""

import pyarrow as pa
import pytest
import torch

from timm_drnet.bulk.listing import Location
from timm_drnet.bulk.workers import ClassifyingWorker, DecodingWorker, work_unit


@pytest.fixture
def events(monkeypatch):
    """What happens, in order; Ray's store holds the very objects."""
    import ray

    events = []
    monkeypatch.setattr(ray, 'get', lambda x: x)
    monkeypatch.setattr('timm_drnet.bulk.workers._begin', lambda _, work, *images: events.append((work, *images)))

    def loader(model):
        def load(path):
            events.append(path)
            return torch.zeros(3, 64, 64)

        return load

    monkeypatch.setattr('timm_drnet.bulk.workers.image_loader', loader)
    return events


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('kind', ['classify', 'decode'])
def test_work_is_announced_before_its_first_image(tiny, events, threads, kind):
    before = torch.get_num_threads()
    try:
        if kind == 'classify':
            worker = ClassifyingWorker(tiny, None, 'image', 1, 2, threads, 'cpu')
        else:
            worker = DecodingWorker(tiny, None, 'image', threads)
        units = pa.Table.from_pylist([
            work_unit(first, [Location(f'/{n}.jpg', None) for n in range(first, first + 3)]) for first in (6, 9)])
        assert len(list(worker(units))) == 2
    finally:
        torch.set_num_threads(before)
    assert events[0] == (f'{kind} 6', 6, 3)
    assert set(events[1:4]) == {'/6.jpg', '/7.jpg', '/8.jpg'}
    assert events[4] == (f'{kind} 9', 9, 3)
    assert len(events) == 8
