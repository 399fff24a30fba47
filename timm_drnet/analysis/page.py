"""The page of an analysis: one HTML file that needs no network, and says of each figure what it shows."""

import base64
import hashlib

from .choices import Analysis
from .listings import classes_section, images_section, settings_section, unreadable_notice
from .markup import Subject, breakable, count, flops, percent, text
from .sections import calibration_section, confusion_section, cost_section, outcomes_section, sizes_section
from .style import CSS, SCRIPT


def page(analysis: Analysis, subject: Subject) -> str:
    """Write the page.

    Args:
        analysis: The analysis.
        subject: What was analyzed.

    Returns:
        An HTML document.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # Nothing is loaded and no other script runs, even if a name should ever come through as markup.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Choices of resolution: {text(subject.model)} on {text(subject.source)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{_introduction(analysis, subject)}
{cost_section(analysis)}
{sizes_section(analysis)}
{outcomes_section(analysis)}
{confusion_section(analysis)}
{calibration_section(analysis)}
{classes_section(analysis, subject)}
{images_section(analysis, subject)}
{settings_section(subject)}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _introduction(analysis: Analysis, subject: Subject) -> str:
    validation, oracle, choices = analysis.validation, analysis.oracle, analysis.choices
    largest = validation.resolutions[0]
    *others, last = (str(row.resolution) for row in validation.resolutions)
    sizes = f'{", ".join(others)} or {last}' if others else last
    tiles = ''.join(
        f'<div class="tile"><dt>{name}</dt><dd class="figure">{figure}</dd><dd>{words}</dd></div>'
        for name, figure, words in (
            ('Dynamic', percent(validation.dynamic.top1),
             f'of the images are right as the model is used, for {flops(validation.dynamic.gflops)} an image'),
            (f'Held at {largest.resolution} px', percent(largest.held.top1),
             f'are right if all of them run at the largest size, for {flops(largest.held.gflops)}'),
            ('Oracle', percent(oracle.top1),
             'would be right with the best size for each, for'
             f' {flops(oracle.gflops_with_predictor)} with the predictor'),
            ('Agreement', percent(100 * choices.agreement),
             'get the size that the oracle takes; if the sizes were dealt out blindly,'
             f' {percent(100 * choices.agreement_by_chance)} would'),
        ))
    return f"""<h1>Choices of resolution: {breakable(subject.model)}</h1>
<p class="soft">{text(subject.source)}: {count(validation.images, 'image')} of {len(analysis.classes):,}
{'class' if len(analysis.classes) == 1 else 'classes'}</p>
{unreadable_notice(subject)}
<p>A dynamic resolution network first looks at a small copy of an image through a tiny network, the <em>predictor</em>,
which chooses a size: {sizes} pixels a side. The large network, the <em>backbone</em>, then classifies the image at that
size. Large sizes are right more often, as a rule, and cost more. This page shows how good the choices were.</p>
<p>They are held against an <em>oracle</em> that knows the answers: for each image it takes the smallest size at which
the classification is right, and the smallest of all where none is. No predictor can make this backbone right more
often, and none that is right as often can be cheaper. Cost is counted in FLOPs, the multiplications (each with an
addition) that one image takes; a GFLOP is a billion of them, an MFLOP a million.</p>
<dl class="tiles">{tiles}</dl>"""
