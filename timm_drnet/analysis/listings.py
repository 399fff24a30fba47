"""The lists of an analysis: its classes, some of its images, and how they were measured."""

from .charts import share_strip
from .choices import Analysis
from .markup import Subject, count, percent, size_style, swatch, table, text

_NAMED = 100
"""Unreadable images that the page names."""


def unreadable_notice(subject: Subject) -> str:
    """What is missing from the numbers, or nothing."""
    number = len(subject.unreadable)
    if not number:
        return ''
    items = ''.join(
        f'<li><code>{text(name)}</code>: {text(reason)}</li>' for name, reason in subject.unreadable[:_NAMED])
    more = f'<li>and {number - _NAMED} more, see summary.json</li>' if number > _NAMED else ''
    return (
        f'<div class="notice"><p><strong>{count(number, "image")} could not be read</strong> and'
        f' {"is" if number == 1 else "are"} in none of the numbers.</p>'
        f'<details><summary>Which, and why</summary><ul>{items}{more}</ul></details></div>')


def classes_section(analysis: Analysis, subject: Subject) -> str:
    """A table of the classes, which can be sorted."""
    rows = analysis.validation.resolutions
    head = (
        '<th class="text" scope="col">Class</th><th scope="col">Images</th><th scope="col">Right, dynamic</th>'
        f'<th scope="col">Right, held at {rows[0].resolution}&nbsp;px</th><th scope="col">Sizes</th>'
        + ''.join(f'<th scope="col">{swatch(size_style(j))}{row.resolution}&nbsp;px</th>' for j, row in enumerate(rows))
        + '<th scope="col">GFLOPs</th>')
    body = []
    for one in analysis.classes:
        name = text(subject.class_names[one.label])
        strip = share_strip([(share, size_style(j)) for j, share in enumerate(one.shares)])
        cells = [
            (one.images, f'{one.images:,}'), (one.top1, percent(one.top1, 1)),
            (one.held_top1, percent(one.held_top1, 1)), (one.gflops, strip),
            *((share, percent(100 * share, 0)) for share in one.shares), (one.gflops, f'{one.gflops:.4f}')]
        body.append(f'<tr><th scope="row" data-value="{name}">{name}</th>'
                    + ''.join(f'<td data-value="{value}">{shown}</td>' for value, shown in cells) + '</tr>')
    caption = 'A click on a heading sorts. The same numbers are in <a href="classes.csv">classes.csv</a>.'
    return f"""<h2>Class by class</h2>
<p>A class whose images are easy should be cheap: mostly the smallest size, and right as often as at the largest. With
few images in a class, a difference may well be chance.</p>
{table('Classes', caption, head, ''.join(body), 'sortable', 'tall')}"""


def images_section(analysis: Analysis, subject: Subject) -> str:
    """Thumbnails by chosen resolution, the smallest first, as in Figure 4 of the paper."""
    groups = []
    for j in reversed(range(len(analysis.validation.resolutions))):
        row = analysis.validation.resolutions[j]
        shown = [i for i in subject.thumbnails if analysis.images[i].choice == j]
        heading = f'{swatch(size_style(j))}{row.resolution} px: {count(row.images, "image")}'
        if len(shown) < row.images:
            heading += f', {len(shown)} of them shown'
        sheet = ''.join(_tile(analysis, subject, i) for i in shown)
        groups.append(f'<h3>{heading}</h3>' + (f'<ul class="sheet">{sheet}</ul>' if shown else ''))
    return f"""<h2>Some of the images</h2>
<p>By the size that was chosen for them, the smallest first: what gets a small size should look easy, with one large
object in plain view. Below each image stand its class, whether the model was right, and the size that it needs.</p>
{''.join(groups)}"""


def _tile(analysis: Analysis, subject: Subject, index: int) -> str:
    image, name, uri = analysis.images[index], text(subject.names[index]), subject.thumbnails[index]
    label = text(subject.class_names[image.label])
    picture = f'<div class="gone">{name} can no longer be read</div>' if uri is None else (
        f'<img src="{uri}" alt="{name}, an image of class {label}" title="{name}" width="144" height="144">')
    said = text(subject.class_names[image.predictions[image.choice]])
    answer = '<span>✓ right</span>' if image.right[image.choice] else f'<span class="wrong">✗ taken for {said}</span>'
    needs = 'right at no size' if image.oracle is None else (
        f'needs {analysis.validation.resolutions[image.oracle].resolution}&nbsp;px')
    return f'<li>{picture}<b>{label}</b>{answer}<span>{needs}</span></li>'


def settings_section(subject: Subject) -> str:
    """How it was measured, and where the numbers are."""
    settings = ''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in subject.settings.items())
    return f"""<h2>How this was measured</h2>
<dl class="plain">{settings}</dl>
<p>The numbers of this page are in <a href="summary.json">summary.json</a>, those of every image in
<a href="images.csv">images.csv</a>, and those of every class in <a href="classes.csv">classes.csv</a>.</p>"""
