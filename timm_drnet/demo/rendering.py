"""What the page shows of answers: HTML without scripts, filled from templates."""

import functools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import ImageOps

from ..data.pixels import UnreadableImageError, open_image, printable
from ..evaluate.answers import Answers
from ..evaluate.contact_sheet import contact_sheet
from ..evaluate.prediction import Predictions, format_flops
from .network import Album, Network, Photograph, join
from .pictures import data_uri

TEMPLATE = Path(__file__).parent / 'template'
_THUMBNAIL = 128


def render_photograph(network: Network, photo: Photograph, tried: Sequence[Answers], position: float) -> str:
    """Tell about one photograph.

    Args:
        network: The model.
        photo: The photograph.
        tried: Answers of all photographs that the visitor has tried.
        position: Of the dial, in per cent.

    Returns:
        HTML.
    """
    prediction = network.predict(Album((photo.path,), photo.answers), position)
    (image,) = prediction.images
    stopped = network.resolutions.index(image.resolution)
    all_tried = join(tried)
    paths = (photo.path,) * len(all_tried)
    visit = network.predict(Album(paths, all_tried), position)
    milliseconds = photo.times.stopped[stopped]
    classes, probabilities = photo.answers.classes[0, :, 0].tolist(), photo.answers.probabilities[0, :, 0].tolist()
    sizes = [
        {
            'resolution': r,
            'picture': picture,
            'label': network.labels[k],
            'sure': sure,
            'ran': j >= stopped and network.dial.stops[j] if network.dial.is_threshold else j == stopped,
            'stopped': j == stopped,
        }
        for j, (r, picture, k, sure) in enumerate(
            zip(network.resolutions, photo.seen, classes, probabilities, strict=True))]
    return _environment().get_template('photograph.html').render(
        network=network, name=printable(photo.path.name), image=image, sizes=sizes, times=photo.times,
        milliseconds=milliseconds, thresholds=_thresholds(network, position), visit=visit,
        agreement=network.agreement(all_tried, position))


def render_album(network: Network, album: Album, position: float) -> str:
    """Tell about several photographs.

    Args:
        network: The model.
        album: The photographs.
        position: Of the dial, in per cent.

    Returns:
        HTML.
    """
    predictions = network.predict(album, position)
    return _environment().get_template('album.html').render(
        network=network, predictions=predictions, thresholds=_thresholds(network, position),
        agreement=0 if album.answers is None else network.agreement(album.answers, position),
        names=[printable(path.name) for path in album.paths],
        unreadable=[(printable(one.path.name), one.reason) for one in album.unreadable],
        sheet=data_uri(contact_sheet(predictions), 'PNG') if predictions.images else None)


def render_notice(text: str, role: str = 'alert') -> str:
    """One sentence, where there is nothing else to tell.

    Args:
        text: The sentence.
        role: ``alert`` for what went wrong, ``note`` for what to do.
    """
    return _environment().get_template('notice.html').render(text=printable(text), role=role)


def render_introduction(network: Network) -> str:
    """Say what the page is for."""
    return _environment().get_template('introduction.html').render(network=network)


def render_samples(files: Sequence[str]) -> str:
    """Draw photographs to pick from, as buttons whose values are their numbers.

    Args:
        files: Image files.

    Raises:
        ValueError: If one cannot be read.
    """
    samples = []
    for file in files:
        try:
            thumbnail = ImageOps.fit(open_image(file, side=_THUMBNAIL), (_THUMBNAIL, _THUMBNAIL))
        except UnreadableImageError as error:
            raise ValueError(f'{file}: {error}') from error
        samples.append((printable(Path(file).stem.replace('_', ' ')), data_uri(thumbnail, 'JPEG')))
    return _environment().get_template('samples.html').render(samples=samples)


def _thresholds(network: Network, position: float) -> dict[int, float]:
    """The confidence with which an image stops at each smaller rung of a cascade, largest first."""
    thresholds = network.dial.turn(position).args.thresholds
    return {r: t for r, t in zip(network.resolutions[1:], thresholds, strict=False) if t is not None}


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True)
    environment.filters.update(
        flops=lambda flops, like=None: format_flops(flops, like).replace(' ', '\xa0'),
        percent=lambda share, decimals=0: f'{share:.{decimals}%}'.replace('%', '\xa0%'),
        ms=lambda ms: f'{ms:.{1 if ms < 100 else 0}f}\xa0ms',
        zip=zip,
        count=lambda number, noun: f'{number:,}\xa0{noun}{"" if number == 1 else "s"}')
    environment.globals.update(shares=_shares)
    return environment


def _shares(predictions: Predictions) -> str:
    """How many photographs stopped where: ``9 at 160 px, 3 at 224 px``."""
    return ', '.join(
        f'{count} at {resolution}\xa0px' for resolution, count in reversed(predictions.counts.items()) if count)
