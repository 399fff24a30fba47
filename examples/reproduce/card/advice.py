"""What the page of results begins with: what to use, and what became of the paper's claims."""

from collections.abc import Mapping
from typing import Any

from .page import ROUTERS, best_predictor, difference, mean

_HERE = 'not testable here'


def opening(summary: Mapping[str, Any], longer: Mapping[str, Any]) -> str:
    """Write the first part of the page.

    Args:
        summary: What the run on a card has left, the JSON file's content.
        longer: The same of the longer run, of a narrower network.

    Returns:
        Markdown.
    """
    return '\n'.join([*_advice(summary, longer), *_claims(summary)])


def _advice(summary: Mapping[str, Any], longer: Mapping[str, Any]) -> list[str]:
    held, apart, routers = summary['held'], summary['held_differences'], summary['routers']
    cascade, (name, best) = routers['cascade']['0.7'], best_predictor(summary)
    at = {row: mean([one['top1'][0] for one in held[row]]) for row in ('pretrain', 'utility', 'paper')}
    gains = [f'{apart[f"utility over alone at {side}"]["mean"]:.1f}' for side in (64, 48, 32)]
    longest = held['static-64-equal-time']
    return [
        '## What to use', '',
        'This is what a small network on small images says, after 12 epochs where nothing else is said: points and per'
        ' cent of top-1.', '',
        '- **One network for several sizes: train it at all of them, with their ensemble as teacher, and without a'
        " predictor** (`router='cascade', distill=1`; the same loss as `stage='pretrain', distill=1`). Held at 64, 48"
        f' and 32 px it is {gains[0]}, {gains[1]} and {gains[2]} points better than networks trained for as many epochs'
        f' at one of these sizes, and {apart["utility over pretrain at 64"]["mean"]:.1f} points at 64 px better than'
        ' without the teacher.',
        _longer(longer),
        '- **One size only: a plain network, trained longer.** An epoch at all sizes takes 1.8 times the'
        f' multiplications of one at 64 px. With as many of them, {longest[0]["epochs"]} epochs, the plain network has'
        f' {mean([one["top1"][0] for one in longest])} % at 64 px, and the one for all sizes {at["utility"]} %.',
        '- **A router: the cascade, if `timm-drnet validate` says that it pays on your images.** It tells images apart:'
        f' at 90 % of the cost it is {routers["cascade"]["0.9"]["lots"]["mean"]:.1f} points better than lots at its'
        ' shares, with every seed. But it pays for each size that an image runs at. Here 48 px are so nearly as good as'
        ' 64 px that the same network held at 48 px for most images and at 64 px for the others, by lot, is as good:'
        f' {difference(cascade["own_line"])} at 70 % of the cost.'
        ' With ImageNet weights on photographs, where accuracy falls faster with the size, a cascade does pay: the one'
        ' that ships is above its static line ([Numbers](../README.md#numbers)).',
        f'- **No predictor so far.** The best ({ROUTERS[name]}) is {best["lots"]["mean"]:.2f} points better than lots'
        f' at its shares, and {-best["own_line"]["mean"]:.2f} points worse than two sizes of the same network by lot at'
        ' its cost. Those that were trained beside the network, on its own images, are no better than lots.',
        "- **Not the paper's joint stage in a short training.** It ends with one size for all images, and what is not"
        f' drawn is forgotten: 64 px fall from {at["pretrain"]} to {at["paper"]} % in three epochs. If a joint stage'
        " is wanted, `joint_resolutions='all'` with `predictor_loss='utility'` keeps every size as good as before, and"
        ' `timm-drnet budget` sets its average.',
        '- **Photographs, from ImageNet weights**, are another matter than these: [train on your own](train.md), which'
        ' was measured on [Caltech-101](caltech101.md).', '']


def _longer(summary: Mapping[str, Any]) -> str:
    apart, cascade = summary['held_differences'], summary['routers']['cascade']['0.7']
    gains, topdown = (
        [f'{apart[f"{row} at {side}"]["mean"]:{sign}.1f}' for side in (64, 48, 32)]
        for row, sign in (('teacher over alone', ''), ('topdown over teacher', '+')))
    return (
        f'- **Trained for {summary["epochs"]} epochs, it stays so.** There, with half the channels, a network for 64 px'
        f' is {apart["alone 64 over 48"]["mean"]:.1f} points better than one for 48 px, and the network for all sizes'
        f' {gains[0]}, {gains[1]} and {gains[2]} points better than those for one size. Its cascade at 70 % of the cost'
        f' is {cascade["static_largest"]["mean"]:.1f} points above a plain network at 64 px, and'
        f' {cascade["static_line"]["mean"]:.1f} above the static line of networks for one size. With larger sizes as'
        f" teachers of smaller ones, too (`distill_topdown`, RS-Nets' full version; one seed), 64, 48 and 32 px change"
        f' by {topdown[0]}, {topdown[1]} and {topdown[2]} points, so it is off by default.')


def _claims(summary: Mapping[str, Any]) -> list[str]:
    apart, routers = summary['held_differences'], summary['routers']
    paper, free = routers['paper']['as trained'], routers['paper-no-alpha']['as trained']
    spent = [f'{100 * one["fraction"][i]:.0f}' for one in (paper, free) for i in range(len(one['fraction']))]
    half = len(spent) // 2
    lines = [
        "## The paper's claims", '',
        'Differences are in points of top-1, with their 95 % interval over images and those of each seed. A claim'
        ' *held* if the interval and all seeds are above 0. *Tables* are those further below.', '',
        '| claim | measured here | verdict | why |', '|---|---|---|---|']
    for claim, measured, verdict, why in (
            ('A DRNet is more accurate than its backbone at the largest size, and cheaper: equal epochs.',
             difference(paper['static_largest']), _verdict(paper['static_largest']),
             'By its pretrain stage, which trains on every image at all sizes. The choice adds nothing: held at 48 px'
             f' before the joint stage, the network is {-apart["paper over pretrain at 48"]["mean"]:.1f} points better'
             ' still. In the six epochs of Table 1 it did not hold.'),
            ('The same: equal multiplications.', difference(apart['paper at 48 over equal work at 64']),
             _verdict(apart['paper at 48 over equal work at 64']),
             "The plain network had 22 epochs; the DRNet's two stages had the multiplications of 18. Both gain by"
             ' longer training, which 12 epochs do not end.'),
            ('It is more accurate than the backbone alone at a smaller size.',
             difference(apart['paper at 48 over alone at 48']), _verdict(apart['paper at 48 over alone at 48']),
             'Equal epochs, and the pretrain stage again: its predictor sends every image to 48 px, too. In Table 4 it'
             ' did not hold.'),
            ('The predictor is better than lots.', difference(paper['lots']), _verdict(paper['lots']),
             'At the same shares there is no difference, as all images go to one size. Against lots that take each size'
             ' equally often it held (Table 5), because the other sizes are spoiled.'),
            ('A FLOPs loss lowers the cost.', f'{", ".join(spent[:half])} % with, {", ".join(spent[half:])} % without',
             'held with some seeds', 'Which one size a training ends with depends on the seed, too. alpha does what it'
             ' says, eta does not (Table 2).'),
            ('Norms for each resolution are better than shared ones.', 'Table 1', 'held', 'Six epochs, three seeds.'),
            ('The time on a processor follows the FLOPs.', '[Speed](speed.md)', 'held in part',
             'ResNet-50, 0.64 of the FLOPs: 0.64 to 0.67 of the time in float32, in batches of 32 on an AMD EPYC. The'
             ' faster the arithmetic, the less: 0.93 in int8 with AMX, and 0.86 in bfloat16 on an H100.'),
            ('ResNet-50: 34 % fewer FLOPs at equal accuracy; 1.4 points more with 10 % fewer (ImageNet-1K).', '', _HERE,
             'Needs the training images of ImageNet-1K, and some 20 hours of an H100 for a row. The'
             ' [recipes](../examples/recipes) are ready.'),
            ('ResNet-101 and MobileNetV2 gain alike (ImageNet-1K).', '', _HERE, 'The same.'),
            ('ResNet-50 on ImageNet-100 gains 4 points with 17 % fewer FLOPs.', '', _HERE,
             'Full-size images of that set are not at hand; the rows below are its images at 64 px.')):
        lines.append(f'| {claim} | {measured} | **{verdict}** | {why} |')
    return [*lines, '']


def _verdict(one: Mapping[str, Any]) -> str:
    return 'held' if one['low'] > 0 and min(one['seeds']) > 0 else 'did not hold'
