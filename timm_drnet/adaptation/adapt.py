"""Adaptation: a plain backbone becomes dynamic; first its smaller branches, then its router, then its dial."""

import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..cost.costs import Costs, measure_costs
from ..cost.dial import TOLERANCE
from ..cost.flops import cost_table
from ..cost.verdict import Verdict, judge
from ..deploy.stopwatch import warm_seconds_of
from ..deploy.weights_digest import weights_digest
from ..evaluate.answers import Answers, choose, collect_answers
from ..evaluate.budgets import Budget, budget_of, turn_to
from ..hub.plain_backbone import drnet_from
from ..model import DRNet
from .branches import Branches, Settings
from .photographs import Photographs, find_photographs
from .predictor import train_on_utility
from .progress import Progress
from .quality import Trial

_TIMED_BATCHES = 5


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation did and found."""

    model: DRNet
    """The DRNet."""
    images: int
    """Photographs, unreadable ones aside."""
    held_out: int
    """Of these, held out."""
    trials: tuple[Trial, ...]
    """What was tried on each branch, in order; the first of each is the branch as it came."""
    budget: Budget
    """What the dial can do, and its position."""
    read_off: int
    """Photographs that the dial was read off: all, or those held out if something was tuned on the others."""
    verdict: Verdict | None
    """Whether the router pays on these, by labels where they are known, else by agreement with the largest branch;
    None if the dial left one resolution."""
    labelled: bool
    """Whether the labels are known."""
    time_ratio: float | None
    """Time of a batch of 32 over that of the plain backbone at the largest resolution, both deployed, on this
    machine; None for a backbone that cannot be deployed."""


def adapt(
        backbone: str | nn.Module,
        images: str | Path | Sequence[str | Path],
        resolutions: Sequence[int] | None = None,
        target: float = 0.75,
        router: str = 'cascade',
        epochs: int = 4,
        held_out: float = 0.3,
        limit: int | None = None,
        class_map: Mapping[str, int] | None = None,
        workers: int = 0,
        seed: int = 42,
        device: str | torch.device = 'cpu',
        state: str | Path | None = None,
        report: Callable[[str], object] = lambda line: None,
        **kwargs: Any,
) -> Adaptation:
    """Make any timm CNN dynamic, with some photographs and without labels.

    At the largest resolution the model stays the backbone, to the last bit. The smaller ones get norms of their own,
    which are tuned to answer as the largest does, and keep that only where photographs held out show a gain. Then the
    thresholds of the cascade are set for the target, or a predictor is trained and its dial set.

    Args:
        backbone: A timm model with its weights, or its name; then it is created with ``pretrained=True``.
        images: A folder of photographs like those to come, or files, folders and patterns; some hundreds.
        resolutions: Candidates in pixels, largest first; 1, 6/7, 5/7 and 4/7 of the backbone's own size by default.
            Those that do not pay are left out of the cascade.
        target: Average cost of an image, as a fraction of the backbone's.
        router: ``cascade``, or ``predictor``, which learns how far each resolution's answer is from the largest's; that
            of the backbone, if this is a DRNet already, which is then changed in place.
        epochs: Of tuning, for each smaller resolution; 0 only sets the thresholds.
        held_out: The part of the photographs that is held out.
        limit: Take only so many photographs, drawn at random.
        class_map: Label of each class folder, to tell accuracy where the folders are not the model's classes in order.
        workers: Processes that read photographs.
        seed: Of everything that is drawn.
        device: To work on.
        state: A file that keeps the progress: after an interruption, the same call goes on from there.
        report: Called with a line about each thing that was tried.
        **kwargs: Of ``timm.create_model``, for a backbone that is given by its name.

    Returns:
        The model, and what was found.

    Raises:
        ValueError: If an argument is out of range, the target cannot be reached, or the backbone has no BatchNorm.
        OSError: If there are no photographs.

    Examples:
        >>> found = timm_drnet.adapt('efficientnet_lite0', 'photographs')  # doctest: +SKIP
        >>> found.verdict.sentence, found.time_ratio  # doctest: +SKIP
    """
    settings = Settings(target, epochs, workers=workers, seed=seed)
    if not isinstance(backbone, str) and kwargs:
        raise TypeError(f'Invalid {", ".join(kwargs)}: a backbone that is a model has its arguments already.')
    plain = timm.create_model(backbone, pretrained=True, **kwargs) if isinstance(backbone, str) else backbone
    model = drnet_to_adapt(plain, resolutions, router, seed).to(device)
    photographs = find_photographs(images, held_out, seed, limit, model.num_classes, class_map)
    place = None if state is None else Path(state)
    found = adapt_model(model, photographs, settings, place, report)
    if place is not None:
        place.unlink(missing_ok=True)
    return found


def drnet_to_adapt(
        plain: nn.Module,
        resolutions: Sequence[int] | None = None,
        router: str = 'cascade',
        seed: int = 42,
) -> DRNet:
    """The DRNet to adapt, as `adapt` makes it of a plain timm model; one that is a DRNet already stays as it is."""
    if isinstance(plain, DRNet):
        if router != plain.args.router:
            raise ValueError(
                f'Invalid router {router!r}: the backbone is a DRNet already, with a {plain.args.router}; use that, or'
                ' give the plain backbone.')
        if resolutions is not None and tuple(resolutions) != plain.resolutions:
            raise ValueError(
                f'Invalid resolutions {tuple(resolutions)}: the backbone is a DRNet already, of {plain.resolutions};'
                ' leave them out, or give the plain backbone.')
        return plain
    cfg: Any = getattr(plain, 'pretrained_cfg', {})
    sides = default_resolutions(cfg['input_size'][-1]) if resolutions is None else tuple(resolutions)
    if router == 'cascade':
        return drnet_from(plain, resolutions=sides, router=router)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the predictor's first weights: an interrupted run goes on from the same
        return drnet_from(
            plain, resolutions=sides, router=router, predictor='inverted_residual', joint_resolutions='all',
            predictor_loss='utility')


def default_resolutions(side: int) -> tuple[int, ...]:
    """Candidates for a backbone of some size: 1, 6/7, 5/7 and 4/7 of it, in steps of 8 pixels.

    Examples:
        >>> default_resolutions(224)
        (224, 192, 160, 128)
    """
    return tuple(dict.fromkeys((side, *(8 * round(side * sevenths / 56) for sevenths in (6, 5, 4)))))


def adapt_model(
        model: DRNet,
        photographs: Photographs,
        settings: Settings,
        state: Path | None = None,
        report: Callable[[str], object] = lambda line: None,
) -> Adaptation:
    """Adapt a DRNet to photographs: tune its smaller branches where that helps, train its predictor, set its dial.

    Args:
        model: A DRNet on the device to use, with the weights of a plain backbone; changed in place, but for the
            largest branch.
        photographs: To tune on and held out.
        settings: How to adapt.
        state: A file that keeps the progress: after an interruption, the same call goes on from there. It stays: remove
            it once the model is where it shall be.
        report: Called with a line about each thing that was done.

    Returns:
        What was found.

    Raises:
        ValueError: If the target cannot be reached, no photograph is readable, or the model has no norms of its own
            for each resolution, or no router that can be adapted.
    """
    _check(model)
    costs = measure_costs(model)
    tunes = settings.epochs > 0 or model.args.uses_predictor
    _check_reach(  # now, and not after all the work
        settings.target, costs, photographs.held_out if tunes else len(photographs.paths))
    progress = Progress(state, {
        **{name: value for name, value in asdict(settings).items() if name != 'workers'},
        'resolutions': list(model.resolutions), 'held_out': photographs.held_out,
        'images': _digest(str(path) for path in photographs.paths),
        'weights': weights_digest(model)})
    branches = Branches(model, photographs, settings, costs.backbone, progress, report)
    trials = branches.adapt()
    tuned = any(trial.kept and trial.change for trial in trials)
    if model.args.uses_predictor:
        train_on_utility(model, branches, settings, progress, report)
        tuned = True
    read = photographs.labelled if photographs.labels else photographs.evaluation
    answers = collect_answers(model, read(model, not tuned, settings.batch_size, settings.workers))
    budget = budget_of(model, answers, settings.target * costs.backbone[0])
    assert budget.chosen is not None
    turn_to(model, budget.chosen)
    unread = [path in photographs.unreadable for path in photographs.paths]
    return Adaptation(
        model=model,
        images=len(unread) - sum(unread),
        held_out=photographs.held_out - sum(unread[:photographs.held_out]),
        trials=tuple(trials),
        budget=budget,
        read_off=budget.images,
        verdict=_judge(model, answers),
        labelled=answers.labels is not None,
        time_ratio=time_ratio(model, next(photographs.evaluation(model)), report),
    )


@torch.inference_mode()
def time_ratio(
        model: DRNet,
        images: torch.Tensor,
        report: Callable[[str], object] = lambda line: None,
) -> float | None:
    """Time of a DRNet as it is used over that of its plain backbone at the largest resolution, both deployed.

    Args:
        model: The DRNet.
        images: A batch, (B, C, S, S); what it takes depends on where these images stop.
        report: Called with why the model cannot be deployed, if it cannot.

    Returns:
        The median over runs of both in turn; None if the model cannot be deployed.
    """
    weight = next(model.parameters())
    try:
        deployed = model.deploy(micro_batch=8)  # as good as any for both sides, and measuring the best takes long
    except (RuntimeError, ValueError) as error:  # of a backbone that torch.fx cannot follow: it is adapted all the same
        report(f'no time was measured: {error}')
        return None
    x = images.to(weight.device, weight.dtype)
    routed, plain = partial(deployed, x), partial(deployed.forward_at, x, 0)
    return statistics.median(
        warm_seconds_of(routed, x.device) / warm_seconds_of(plain, x.device) for _ in range(_TIMED_BATCHES))


def _check(model: DRNet) -> None:
    args = model.args
    if args.router == 'predictor' and (not args.uses_predictor or args.predictor_loss != 'utility'):
        raise ValueError(
            "Invalid router: a predictor is adapted with stage='joint', joint_resolutions='all' and"
            " predictor_loss='utility'; use these, or router='cascade'.")
    if not args.resolution_aware_norm:
        raise ValueError(
            'All resolutions of the model share their norms, so the largest would change with the others: create it'
            ' with resolution_aware_norm=True.')
    if len(model.resolutions) < 2:
        raise ValueError(f'Invalid resolutions {model.resolutions}: use two or more, the smallest a rung to stop at.')


def _check_reach(target: float, costs: Costs, images: int) -> None:
    """Refuse a target that no position of the dial can meet."""
    cheapest = (min(costs.backbone) + costs.predictor) / costs.backbone[0]
    if target < cheapest:
        raise ValueError(
            f'Invalid target {target}: the smallest resolution alone costs {cheapest:.2f} of the largest, predictor'
            ' included if there is one; use a larger target, or a smaller resolution.')
    least = math.ceil(0.5 / (TOLERANCE * target))  # one image more that goes on costs that much of the target
    if images < least:
        raise ValueError(
            f'Too few images: {images} to set the dial on, and a target of {target} within {100 * TOLERANCE:.0f} %'
            f' needs {least}; give more images, hold out more of them, or use epochs=0, which sets it on all.')


def _judge(model: DRNet, answers: Answers) -> Verdict | None:
    classes = answers.classes[:, :, 0]
    right = classes == (classes[:, 0] if answers.labels is None else answers.labels)[:, None]
    rows = cost_table(model)
    where = choose(model, answers)
    if len(where.unique()) < 2:
        return None
    return judge(
        where, right, [row.backbone_flops for row in rows], [row.total_flops for row in rows], model.resolutions,
        measure='agreement' if answers.labels is None else 'top-1')


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()
