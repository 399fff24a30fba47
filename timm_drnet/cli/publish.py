"""``timm-drnet publish``: a checkpoint or a model, with its card, on the Hugging Face Hub."""

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

from ..evaluate.results import Results
from ..hub.model_card import UNNAMED, model_card
from ..hub.publishing import PublishError, disown_source, find_token, infer_base_model, publish
from ..model import DRNet
from ..train.training_run import TrainingRun, read_training_run
from .common import check_labels, check_model_folder, is_file, load_model, read_labels, save_model
from .output import UserError, show

_SOURCE = 'CHECKPOINT_OR_MODEL'


def run(args: argparse.Namespace) -> int:
    """Publish, or write what would be published."""
    _check(args)
    try:
        token = None if args.dry_run else find_token()  # before the work
    except PublishError as error:
        raise UserError(str(error)) from error
    labels = read_labels(args.labels) if args.labels else None
    model, training = _load(args)
    check_labels(args.labels, labels, model)
    data_config = training.data_config if training else {}
    results = _read_results(args.results, model) if args.results else None
    license = args.license or _cfg(model).get('license') or UNNAMED
    base_model = args.base_model or infer_base_model(model, training)
    card = model_card(
        model, args.repo_id, license, results, training, data_config, args.dataset, base_model, labels)
    show(*_summary(args, model, training, results, license, base_model))

    content = card, labels, data_config, license
    if args.dry_run is not None:
        save_model(model, check_model_folder('--dry-run', args.dry_run, model), *content)
        show(*_dry_run(args))
        return 0
    with TemporaryDirectory() as parent:
        folder = check_model_folder('TMPDIR', os.path.join(parent, 'model'), model)
        save_model(model, folder, *content)
        try:
            done = publish(folder, args.repo_id, args.private, args.revision, args.create_pr, args.replace_card,
                           args.message, token)
        except PublishError as error:
            raise UserError(str(error)) from error
    if done.card_kept:
        show('README.md: the repository has one, which was left as it is (--replace-card for the new one)')
    if not done.changed:
        show('nothing has changed since the last commit')
    revision = done.commit.pr_revision or args.revision
    show(
        done.commit.pr_url or done.commit.commit_url,
        f"timm.create_model('hf-hub:{args.repo_id}{f'@{revision}' if revision else ''}', pretrained=True)")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot come to anything, before a model is loaded."""
    for option, ids in (
            ('ORG/NAME', [args.repo_id]), ('--base-model', [args.base_model] if args.base_model else []),
            ('--dataset', args.dataset)):
        for name in ids:
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise UserError(f'{option} {name}: {error}') from error
            if '/' not in name and option != '--dataset':
                raise UserError(f'{option} {name}: name the organization or user too, as in ORG/{name}')
    if args.dry_run is not None and args.create_pr:
        raise UserError('--dry-run and --create-pr: use one of them; a dry run sends nothing')
    if args.create_pr and args.revision not in (None, 'main'):
        raise UserError(f'--revision {args.revision} and --create-pr: a pull request is for main; use one of them')
    if args.dry_run is not None:
        check_model_folder('--dry-run', args.dry_run)


def _load(args: argparse.Namespace) -> tuple[DRNet, TrainingRun | None]:
    """The model, and the training it comes from if it is a checkpoint."""
    training = None
    if is_file(args.source):
        try:
            training = read_training_run(args.source)
        except ValueError as error:
            raise UserError(f'{args.source}: {error}') from error
        name = args.model or training.model
        if name is None:
            raise UserError(f'{args.source}: holds no arguments of train.py; name its model with --model, and with'
                            ' --model-kwargs and --num-classes what is not its default')
        model = load_model(name, args.num_classes, args.source, option=_SOURCE, **args.model_kwargs)
        disown_source(model)
    elif args.model is not None:
        raise UserError(f'--model {args.model}: {args.source} names a model already; leave --model out')
    else:
        model = load_model(args.source, args.num_classes, option=f'a checkpoint as {_SOURCE}', **args.model_kwargs)
    if model.num_classes < 1:
        raise UserError(f'{args.source}: the model has no classifier (num_classes=0)')
    _check_stage(args, model, training)
    return model, training


def _check_stage(args: argparse.Namespace, model: DRNet, training: TrainingRun | None) -> None:
    """A model of the pretrain stage would not route; nobody publishes one unless on purpose."""
    if model.args.stage == 'pretrain' and args.model_kwargs.get('stage') != 'pretrain':
        raise UserError(
            f'{args.source}: is of the pretrain stage and would run every image at {model.resolutions[0]} px; publish'
            ' that of the joint stage, or say --model-kwargs stage=pretrain to publish it as a start for others')
    if training and training.model_args.get('stage') == 'pretrain' and model.args.stage == 'joint':
        raise UserError('--model-kwargs stage=joint: the checkpoint is of the pretrain stage, so its predictor is not'
                        ' trained; say stage=pretrain')


def _read_results(name: str, model: DRNet) -> Results:
    try:
        return Results.from_report(json.loads(Path(name).read_text(encoding='utf-8')), model)
    except OSError as error:
        raise UserError(f'--results {name}: {error.strerror}') from error
    except ValueError as error:
        reason = 'not JSON' if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
        raise UserError(f'--results {name}: {reason}; give the JSON of timm-drnet validate for this model') from error


def _summary(
        args: argparse.Namespace,
        model: DRNet,
        training: TrainingRun | None,
        results: Results | None,
        license: str,
        base_model: str | None,
) -> list[str]:
    """What goes into the repository, and where it was taken from."""
    weights = args.source
    if training is not None:
        kind = 'averaged (EMA) weights' if training.averaged else 'weights'
        weights = f'{kind} of {args.source}'
        if training.epochs is not None:
            weights += f', epochs done: {training.epochs}'
    named = len(_cfg(model).get('label_names') or ()) == model.num_classes
    names = args.labels or ("of the model's configuration" if named else 'none in the configuration (--labels)')
    origin = '--license' if args.license else (
        "the model's configuration; --license for another" if _cfg(model).get('license') else 'not named; --license')
    accuracy = 'not measured (--results)'
    if results is not None:
        found = results.validation
        accuracy = f'{found.dynamic.top1:.2f} % top-1 of {found.images:,} images, measured on {results.measured}'
    rows = {
        'model': f'{_cfg(model)["architecture"]}, {model.num_classes:,} classes,'
                 f' {", ".join(map(str, model.resolutions))} px, '
                 + ('cascade' if model.args.router == 'cascade' else f'{model.args.stage} stage'),
        'weights': weights, 'labels': names, 'licence': f'{license} ({origin})',
        'data sets': ', '.join(args.dataset) or 'not named (--dataset)',
        'base model': base_model or 'not named (--base-model)', 'accuracy': accuracy,
    }
    return [f'{key:<11} {value}' for key, value in rows.items()]


def _dry_run(args: argparse.Namespace) -> list[str]:
    files = sorted(Path(args.dry_run).iterdir())
    sizes = ', '.join(f'{file.name} ({file.stat().st_size:,} bytes)' for file in files)
    kind = 'private repository' if args.private else 'repository'
    card = '' if args.replace_card else '; a README.md that is there already would stay (--replace-card)'
    return [
        f'wrote {sizes} to {args.dry_run}',
        f'publishing would commit them to {args.revision or "main"} of the {kind} {args.repo_id}{card}',
        'nothing was sent']


def _cfg(model: DRNet) -> dict[str, Any]:
    return model.pretrained_cfg  # type: ignore[return-value]  # timm's attribute
