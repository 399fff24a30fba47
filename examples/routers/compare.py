"""Routers for a plain backbone, on labelled photographs that nothing was tuned on: what each brings, and what it costs.

    python examples/routers/compare.py run NAME BACKBONE --adapt IMAGES --test DATA --class-map FILE [...]
    python examples/routers/compare.py report

The first makes examples/routers/results/NAME.json, the second docs/routers.md of all there are. What is done is kept in
NAME.parts beside it: an interrupted run goes on when it is started again.
"""

import argparse
import ast
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from confidence import compare_measures
from report import write_page

import timm_drnet
from timm_drnet.adaptation.adapt import drnet_to_adapt
from timm_drnet.adaptation.branches import Branches, Settings
from timm_drnet.adaptation.photographs import find_photographs
from timm_drnet.adaptation.predictor import train_on_utility
from timm_drnet.adaptation.progress import Progress
from timm_drnet.cascade.climb import paid_by_stop
from timm_drnet.cost.costs import Costs, measure_costs
from timm_drnet.cost.dial import find_cost_weight
from timm_drnet.cost.thresholds import choose_thresholds, likelihood, stop
from timm_drnet.cost.verdict import judge
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.labelled import make_loader
from timm_drnet.data.reading import data_config
from timm_drnet.evaluate.answers import collect_answers
from timm_drnet.evaluate.oracle import find_oracle, smallest_right
from timm_drnet.hub.checkpoints import load_plain_weights, read_weights

RESULTS = Path(__file__).parent / 'results'
TARGETS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
COUNTS = (100, 300, 1000, 4000)

Answers = dict[str, torch.Tensor]
"""Confidence, classes and the likelihood of each, (N, M), and, where they are known, labels (N,)."""


class Study:
    """One backbone: what its branches answer, as they come and tuned."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.parts = RESULTS / f'{args.name}.parts'
        self.parts.mkdir(parents=True, exist_ok=True)
        plain = timm.create_model(args.backbone, pretrained=args.checkpoint is None, **args.model_kwargs)
        if args.checkpoint:
            load_plain_weights(plain, read_weights(args.checkpoint))
        self.plain = plain
        self.model = drnet_to_adapt(plain, args.resolutions)
        self.photographs = find_photographs(args.adapt, 0.3, seed=42, limit=args.limit)
        self.costs = [row.backbone_flops for row in timm_drnet.cost_table(self.model)]

    def once(self, name: str, make: Any) -> Any:
        """Do something, or take what was done before."""
        path = self.parts / f'{name}.pt'
        if not path.exists():
            torch.save(make(), path)
        return torch.load(path, weights_only=True)

    def labelled(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The photographs to measure on."""
        images = open_labelled_images(
            self.args.test, self.model.num_classes, class_map=self.args.class_map, split='validation')
        return images.batches(make_loader(images, data_config(self.model, self.args.crop_pct), 32, self.args.workers))

    def test(self) -> Answers:
        """Of the model as it is now, on the labelled photographs."""
        return answers_of(self.model, self.labelled())

    def logits(self) -> dict[str, torch.Tensor]:
        """Of the branches as they come, on all photographs of both kinds, in half precision."""
        unlabelled = self.photographs.evaluation(self.model, everything=True, workers=self.args.workers)
        test = [(logits_of(self.model, x), labels) for x, labels in self.labelled()]
        logits, labels = map(torch.cat, zip(*test, strict=True))
        return {'adapt': torch.cat([logits_of(self.model, x) for x in unlabelled]), 'test': logits, 'labels': labels}

    def confidence(self) -> dict[int, Any]:
        """What other measures of confidence are worth, at each size below the largest."""
        found = self.once('logits', self.logits)
        return {
            side: compare_measures(found['adapt'], found['test'], found['labels'], j)
            for j, side in enumerate(self.model.resolutions) if j}

    def tune(self) -> dict[str, Any]:
        """Adapt the branches; the trials, and what the tuned ones answer, kept or not."""
        tuned: dict[int, tuple[Answers, Answers]] = {}

        def watch(trial: Any) -> None:
            print(trial, flush=True)
            if trial.change == 'norms tuned':
                index = self.model.resolutions.index(trial.resolution)
                tuned[index] = self.test(), answers_of(self.model, self.photographs.evaluation(self.model))

        settings = Settings(0.75, workers=self.args.workers)
        costs = tuple(float(cost) for cost in self.costs)
        trials = Branches(self.model, self.photographs, settings, costs, Progress(None, {}), watch=watch).adapt()
        joined = [{key: value.clone() for key, value in one.items()} for one in tuned[1]]
        for index, both in tuned.items():
            for whole, one in zip(joined, both, strict=True):
                for key in ('sure', 'classes', 'likely'):
                    whole[key][:, index] = one[key][:, index]
        return {
            'trials': [dataclasses.asdict(trial) for trial in trials], 'test': joined[0], 'held out': joined[1],
            'kept test': self.test(),
            'kept held out': answers_of(self.model, self.photographs.evaluation(self.model))}

    def teach(self) -> dict[str, Any]:
        """Train a predictor on the utility of each size; its scores for the photographs held out and for the others."""
        model = drnet_to_adapt(self.plain, self.args.resolutions, 'predictor')
        settings, progress, costs = Settings(0.75, workers=self.args.workers), Progress(None, {}), measure_costs(model)
        branches = Branches(model, self.photographs, settings, costs.backbone, progress)
        train_on_utility(model, branches, settings, progress, print)
        return {
            'predictor': costs.predictor / costs.backbone[0],
            'held out': collect_answers(model, self.photographs.evaluation(model), only_scores=True).scores,
            'test': collect_answers(model, (x for x, _ in self.labelled()), only_scores=True).scores}


@torch.inference_mode()
def answers_of(model: Any, batches: Any) -> Answers:
    """The first answer at each candidate."""
    found = collect_answers(model, batches)
    answers = {
        'sure': found.probabilities[:, :, 0].clone(), 'classes': found.classes[:, :, 0].clone(),
        'likely': likelihood(found.classes, found.probabilities)}
    return answers if found.labels is None else {**answers, 'labels': found.labels.clone()}


@torch.inference_mode()
def logits_of(model: Any, x: torch.Tensor) -> torch.Tensor:
    """At each candidate, (B, M, num_classes) float16."""
    return torch.stack([model.forward_at(x, j) for j in range(len(model.resolutions))], dim=1).half()


def cascade(study: Study, unlabelled: Answers, test: Answers, name: str) -> list[dict[str, Any]]:
    """Set thresholds on unlabelled photographs, for each target; measure on the labelled ones."""
    relative = [cost / study.costs[0] for cost in study.costs]
    rows = []
    for target in TARGETS:
        try:
            thresholds = choose_thresholds(unlabelled['sure'], unlabelled['likely'], relative, target).thresholds
        except ValueError as error:
            rows.append({'router': name, 'target': target, 'error': str(error)})
            continue
        rows.append({
            'router': name, 'target': target, 'thresholds': thresholds, 'images': len(unlabelled['sure']),
            **measure(study, test, stop(thresholds, test['sure']), paid_by_stop(thresholds, relative))})
    return rows


def predictor(study: Study, taught: dict[str, Any], test: Answers, name: str) -> list[dict[str, Any]]:
    """Set the dial of a predictor on unlabelled photographs, for each target; measure on the labelled ones."""
    relative = tuple(cost / study.costs[0] for cost in study.costs)
    costs = Costs('of the backbone', relative, taught['predictor'])
    rows = []
    for target in TARGETS:
        try:
            weight = find_cost_weight(taught['held out'], costs, target)
        except ValueError as error:
            rows.append({'router': name, 'target': target, 'error': str(error)})
            continue
        choices = (taught['test'] - weight * torch.tensor(costs.relative)).argmax(dim=1)
        rows.append({
            'router': name, 'target': target, 'weight': weight, 'images': len(taught['held out']),
            **measure(study, test, choices, [cost + costs.predictor for cost in relative])})
    return rows


def measure(study: Study, test: Answers, choices: torch.Tensor, paid: Sequence[float]) -> dict[str, Any]:
    """What choices cost and bring on the labelled photographs."""
    right = test['classes'] == test['labels'][:, None]
    verdict = judge(choices, right, [cost / study.costs[0] for cost in study.costs], paid, study.model.resolutions)
    return {
        'cost': float(torch.tensor(paid)[choices].mean()),
        'top1': 100 * float(right.gather(1, choices[:, None]).double().mean()),
        'static': dataclasses.asdict(verdict.static), 'lots': dataclasses.asdict(verdict.lots)}


def run(args: argparse.Namespace) -> None:
    """Measure one backbone."""
    study = Study(args)
    test = study.once('test', study.test)
    everything = study.once('adapt', lambda: answers_of(
        study.model, study.photographs.evaluation(study.model, everything=True, workers=args.workers)))
    rows = []
    for count in sorted({min(count, len(everything['sure'])) for count in COUNTS}):
        part = {key: value[:count] for key, value in everything.items()}
        rows += cascade(study, part, test, f'cascade untouched, {count:,} images')
    if args.others:
        photographs = find_photographs(args.others, 0.3, seed=42, limit=COUNTS[-1])
        others = study.once('others', lambda: answers_of(
            study.model, photographs.evaluation(study.model, everything=True, workers=args.workers)))
        for count in sorted({min(count, len(others['sure'])) for count in (len(everything['sure']), COUNTS[-1])}):
            part = {key: value[:count] for key, value in others.items()}
            rows += cascade(study, part, test, f'cascade untouched, {count:,} images of other classes')
    trials = []
    if not args.untouched:
        tuned = study.once('tuned', study.tune)
        rows += cascade(study, tuned['held out'], tuned['test'], 'cascade, norms tuned in any case')
        rows += cascade(study, tuned['kept held out'], tuned['kept test'], 'cascade adapted')
        trials = tuned['trials']
        taught = study.once('taught', study.teach)
        rows += predictor(study, taught, test, 'predictor on utilities')
    right = test['classes'] == test['labels'][:, None]
    oracle = find_oracle(timm_drnet.cost_table(study.model), smallest_right(right))
    result = {
        'name': args.name, 'backbone': args.backbone, 'command': shlex.join(sys.argv[1:]), 'torch': torch.__version__,
        'timm': timm.__version__, 'images': len(right), 'resolutions': study.model.resolutions,
        'relative': [cost / study.costs[0] for cost in study.costs],
        'held': [100 * float(one) for one in right.double().mean(dim=0)],
        'oracle': {
            'top1': oracle.top1, 'cost': oracle.fraction},
        'rows': rows, 'trials': trials, 'confidence': study.confidence()}
    (RESULTS / f'{args.name}.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('run', help='measure one backbone')
    one.add_argument('name')
    one.add_argument('backbone')
    one.add_argument('--checkpoint')
    one.add_argument('--model-kwargs', type=ast.literal_eval, default={}, help='a dict')
    one.add_argument('--resolutions', type=int, nargs='+')
    one.add_argument('--adapt', required=True, help='photographs without labels')
    one.add_argument('--others', help='photographs of other classes, without labels')
    one.add_argument('--limit', type=int)
    one.add_argument('--test', required=True, help='a folder per class')
    one.add_argument('--class-map', default='')
    one.add_argument('--crop-pct', type=float)
    one.add_argument('--workers', type=int, default=0)
    one.add_argument('--untouched', action='store_true', help='tune nothing')
    commands.add_parser('report', help='write docs/routers.md')
    args = parser.parse_args()
    if args.command == 'run':
        run(args)
    else:
        write_page(RESULTS)


if __name__ == '__main__':
    main()
