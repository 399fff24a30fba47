"""The figures of an analysis: what choosing brings, what was chosen, and how sure the predictor was of it."""

from .charts import Series, marker, reliability, scatter, stacked_bars
from .choices import Analysis
from .markup import percent, size_style, swatch, table

_OUTCOMES = {
    'just_right': ('=', 'just right', 'classified correctly, and at no smaller size'),
    'needlessly_large': ('▲', 'needlessly large', 'classified correctly, as it would be at a smaller size'),
    'too_small': ('▼', 'too small', 'classified wrongly, but correctly at a larger size'),
    'only_smaller_right': ('◆', 'right only if smaller', 'classified wrongly, and correctly only at a smaller size'),
    'none_right': ('○', 'right at no size', 'classified wrongly at every size: no choice could have helped'),
}
"""By the names of `Outcomes`: a sign, a name, and what it means."""


def cost_section(analysis: Analysis) -> str:
    """Accuracy and cost of every way to choose."""
    validation, oracle = analysis.validation, analysis.oracle
    held, router = validation.resolutions, validation.random
    rows = [
        ('star', 'Dynamic', validation.dynamic, 0.0),
        *(('circle', f'Held at {row.resolution}\u00a0px', row.held, 0.0) for row in held),
        ('square', 'Random router', router.mean, router.std.top1),
    ]
    points = [(shape, name, score.top1, score.gflops, score.fraction, std) for shape, name, score, std in rows]
    points += [
        ('triangle', 'Oracle with predictor', oracle.top1, oracle.gflops_with_predictor,
         oracle.fraction_with_predictor, 0.0),
        ('open-triangle', 'Oracle', oracle.top1, oracle.gflops, oracle.fraction, 0.0),
    ]
    series = [
        Series('Held at one size', 'circle', tuple((row.held.gflops, row.held.top1) for row in held),
               tuple(f'{row.resolution} px' for row in held), joined=True),
        *(Series(name, shape, ((gflops, top1),), error=std)
          for shape, name, top1, gflops, _, std in reversed(points) if shape != 'circle'),
    ]
    drawn = scatter(
        series, 'Accuracy against cost; the numbers are in the table beside it', 'GFLOPs per image', 'images right, %')
    body = ''.join(
        f'<tr{" class=used" if shape == "star" else ""}><th class="keyed" scope="row">{marker(shape)}{name}</th>'
        f'<td>{percent(top1)}{f"<br>± {std:.2f}" if shape == "square" else ""}</td><td>{gflops:.4f}</td>'
        f'<td>{percent(100 * fraction, 1)}</td></tr>' for shape, name, top1, gflops, fraction, std in points)
    head = (
        '<th class="text" scope="col">Way to choose</th><th scope="col">Right</th><th scope="col">GFLOPs</th>'
        f'<th scope="col">of {held[0].resolution}&nbsp;px</th>')
    caption = (
        'Images right, and the cost of one image. Only the dynamic model and the oracle with predictor pay for a'
        f' predictor; the random router is the mean of {len(router.draws)} draws, ± their standard deviation.')
    return f"""<h2>Accuracy and cost</h2>
<p>Up is more accurate and left is cheaper: choosing pays where the star lies above the line, which joins the backbone
held at one size, and above the square, which deals out the same sizes blindly.</p>
<div class="pair"><figure>{drawn}</figure>
{table('Accuracy and cost', caption, head, body)}</div>
<p>The oracle is right on {percent(oracle.top1 - validation.dynamic.top1)} more of the images than the model: that is
the most that a better predictor could gain.</p>"""


def sizes_section(analysis: Analysis) -> str:
    """Shares of the sizes that images need and of those that were chosen."""
    validation, oracle = analysis.validation, analysis.oracle
    images, none = validation.images, oracle.none_right / validation.images
    rows = [(f'{row.resolution} px', n / images, row.share, size_style(j))
            for j, (row, n) in enumerate(zip(validation.resolutions, oracle.images, strict=True))]
    needed = [(name, share, style) for name, share, _, style in rows]
    drawn = stacked_bars(
        [('needed', [*needed, ('right at no size', none, 'none_right')]),
         ('chosen', [(name, share, style) for name, _, share, style in rows])],
        'Shares of the sizes that images need and of those that were chosen; the list beside it has the numbers')
    items = ''.join(
        f'<li>{swatch(style)}{name}: needed by {percent(100 * share, 1)}, chosen for {percent(100 * chosen, 1)}</li>'
        for name, share, chosen, style in rows)
    return f"""<h2>The predictor against the oracle</h2>
<h3>Sizes that are needed, and sizes that were chosen</h3>
<p>An image needs the smallest size at which it is classified correctly: the more alike the two bars are, the better the
predictor knows how many images are easy, though not yet which ones.</p>
<div class="pair"><figure>{drawn}</figure><ul class="legend">{items}
<li>{swatch('none_right')}right at no size: {percent(100 * none, 1)}</li></ul></div>"""


def outcomes_section(analysis: Analysis) -> str:
    """What became of the images."""
    images, found = analysis.validation.images, analysis.choices
    shares = {name: getattr(found.outcomes, name) / images for name in _OUTCOMES}
    drawn = stacked_bars(
        [('', [(_OUTCOMES[name][0], share, name) for name, share in shares.items()])],
        'Shares of what became of the images; the list beside it has the numbers')
    items = ''.join(
        f'<li>{swatch(name)}<strong>{_OUTCOMES[name][0]} {_OUTCOMES[name][1]}: {percent(100 * share, 1)}</strong>,'
        f' {_OUTCOMES[name][2]}</li>' for name, share in shares.items())
    rate = '' if found.right_when_possible is None else (
        f'<p>Of the images that are right at one size or another, {percent(100 * found.right_when_possible)} are right'
        ' at the size that was chosen.</p>')
    return f"""<h3>What became of the images</h3>
<p>Every image is in one group: a size that is too small costs accuracy, one that is needlessly large only
computation.</p>
<div class="pair"><figure>{drawn}</figure><ul class="legend">{items}</ul></div>
{rate}"""


def confusion_section(analysis: Analysis) -> str:
    """The predictor's choices by those of the oracle."""
    sides = [row.resolution for row in analysis.validation.resolutions]
    body = ''
    for i, row in enumerate(analysis.choices.confusion):
        total = sum(row)
        cells = ''
        for j, n in enumerate(row):
            agree = ' class="agree"' if j == min(i, len(sides) - 1) else ''
            part = n / total if total else 0.0
            cells += f'<td{agree} style="--part: {50 * part:.0f}%">{n:,}<small>{percent(100 * part, 0)}</small></td>'
        name = f'needs {sides[i]}&nbsp;px' if i < len(sides) else 'right at none'
        body += f'<tr><th scope="row">{name}</th>{cells}<td>{total:,}</td></tr>'
    head = ('<td></td>' + ''.join(f'<th scope="col">gets {side}&nbsp;px</th>' for side in sides)
            + '<th scope="col">all</th>')
    return f"""<h3>Choice by choice</h3>
<p>A row holds the images that need one size, and shows which sizes they got: in framed cells predictor and oracle
agree, to the left of a frame the choice is dearer than it need be, to the right of it too small.</p>
{table('Choices', 'Number of images, and share of the row', head, body, 'confusion')}"""


def calibration_section(analysis: Analysis) -> str:
    """The predictor's probabilities against how often it agrees with the oracle."""
    filled = [
        (one.low, one.high, one.count, one.probability, one.frequency) for one in analysis.calibration.bins
        if one.probability is not None and one.frequency is not None]
    drawn = reliability(
        filled, 'Agreement with the oracle by probability; the numbers are in the table beside it',
        'probability of the chosen size, %', 'choice is that of the oracle, %')
    body = ''.join(
        f'<tr><th scope="row">{100 * low:.0f} to {100 * high:.0f}&nbsp;%</th><td>{n:,}</td>'
        f'<td>{percent(100 * probability, 1)}</td><td>{percent(100 * frequency, 1)}</td></tr>'
        for low, high, n, probability, frequency in filled)
    head = (
        '<th class="text" scope="col">Probability</th><th scope="col">Images</th><th scope="col">Average</th>'
        '<th scope="col">Agreement</th>')
    return f"""<h2>How sure the predictor is</h2>
<p>Each bar holds the images whose chosen size had a probability in that range, their number at its foot, and is as
high as the share of them for which the oracle takes the same size: where it ends on the dashed line, the probability
can be taken at its word.</p>
<div class="pair"><figure>{drawn}<figcaption>A dot stands at the average probability of its bar.</figcaption></figure>
{table('Calibration', 'Average probability of the chosen size, and agreement with the oracle', head, body)}</div>
<p>On average the two are {100 * analysis.calibration.ece:.1f} points apart (expected calibration error). The predictor
learns to keep the classification right and cheap, not to copy the oracle, so this is no mistake of its training.</p>"""
