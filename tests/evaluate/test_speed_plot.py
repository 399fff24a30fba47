"""The drawing of accuracy against time: what is in it, and that no label lies on another."""

import itertools
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from timm_drnet.evaluate.bench import Benchmark, Timing
from timm_drnet.evaluate.speed_plot import plot_speed


def benchmark(size, *milliseconds):
    names = ('dynamic', 'held at 64 px', 'held at 48 px', 'held at 32 px', 'all branches')
    timings = tuple(
        Timing(name, ms * size, 0.9 * ms * size, ms * size, 1.2 * ms * size, 2 * ms * size, 1e3 / ms, 0.5, 0.5, None)
        for name, ms in zip(names, milliseconds, strict=True))
    return Benchmark(size, (0.2, 0.3, 0.5), timings, 0.0, 1.0)


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Function that draws accuracies at 64, 48 and 32 px and of the model: the figure, laid out."""

    def draw(held, dynamic):
        drawn = []
        save = Figure.savefig
        monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: (
            drawn.append(figure), save(figure, *args, **kwargs)))
        rows = [
            SimpleNamespace(resolution=r, held=SimpleNamespace(top1=top1))
            for r, top1 in zip((64, 48, 32), held, strict=True)]
        results = SimpleNamespace(
            validation=SimpleNamespace(resolutions=rows, dynamic=SimpleNamespace(top1=dynamic)))
        engines = {
            name: [benchmark(size, *(factor * ms for ms in (7, 10, 6, 8, 24))) for size in (1, 8)]
            for name, factor in (('eager', 1), ('deployed', 0.6))}
        plot_speed(engines, results, tmp_path / 'speed.png', 'a title')
        drawn[0].draw_without_rendering()
        return drawn[0]

    return draw


@pytest.mark.parametrize(('held', 'dynamic'), [
    ((82.0, 76.0, 68.0), 81.0), ((82.0, 81.9, 81.8), 81.95), ((80.0, 80.0, 80.0), 80.0)])
def test_no_label_lies_on_another(draw, held, dynamic):
    figure = draw(held, dynamic)
    for panel in figure.axes:
        boxes = {text.get_text(): text.get_window_extent() for text in panel.texts}
        assert set(boxes) == {'64 px', '48 px', '32 px', 'dynamic'}
        for one, other in itertools.combinations(boxes, 2):
            assert not boxes[one].overlaps(boxes[other]), (one, other)
        assert all(box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1 for box in boxes.values())


def test_a_panel_for_each_batch_size(draw):
    figure = draw((82.0, 76.0, 68.0), 81.0)
    assert [panel.get_title(loc='left') for panel in figure.axes] == ['single images', 'batches of 8']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['eager', 'deployed']
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) > 1 and line.get_color() == 'C0']
    assert [list(line.get_xdata()) for line in lines] == [[6, 10]]  # 32 px took longer than 48 px: not on the line
    assert len(figure.axes[1].containers) == 2 * 4  # ranges of all points
