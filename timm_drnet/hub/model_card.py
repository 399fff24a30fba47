"""Model card: the text and the metadata with which a DRNet is published. Every number in it was counted or measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.data import resolve_input_data_config

from ..cascade.climb import rungs
from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..evaluate.results import Results
from ..evaluate.validation import Accuracy, Score, Validation
from ..train.training_run import TrainingRun
from .recipe import recipe

_TAGS = ['image-classification', 'timm', 'transformers', 'drnet', 'dynamic-resolution']

_PAPER = 'https://arxiv.org/abs/2106.02898'

_CITATION = """\
@inproceedings{zhu2021dynamic,
  title     = {Dynamic Resolution Network},
  author    = {Zhu, Mingjian and Han, Kai and Wu, Enhua and Zhang, Qiulin and Nie, Ying and Lan, Zhenzhong
               and Wang, Yunhe},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}"""

UNNAMED = 'other'
"""The Hub's name for a licence that is none of those it knows, as that of weights whose authors named none."""

_NAMED = 10  # labels in the card


def model_card(
        model: DRNet,
        repo_id: str,
        license: str,
        results: Results | None = None,
        run: TrainingRun | None = None,
        data_config: Mapping[str, Any] | None = None,
        datasets: Sequence[str] = (),
        base_model: str | None = None,
        labels: Sequence[str] | None = None,
) -> ModelCard:
    """Describe a DRNet for the people who find it on the Hub.

    Args:
        model: A DRNet that ``timm.create_model`` made.
        repo_id: ORG/NAME of its repository.
        license: Licence of the weights, by the Hub's name.
        results: What was measured on it; without them the card says that nothing was.
        run: The training that it comes from.
        data_config: As for `save_folder`.
        datasets: Data sets by their names on the Hub, the one that the results were measured on first.
        base_model: ORG/NAME of the model that the training started from.
        labels: As for `save_folder`.

    Returns:
        The card.
    """
    name = repo_id.partition('/')[2]
    prepared = resolve_input_data_config(model, args=dict(data_config or {}))
    measured = _eval_results(results, datasets[0]) if results and datasets else None
    data = ModelCardData(
        license=license, library_name='timm', pipeline_tag='image-classification', tags=list(_TAGS),
        base_model=base_model, datasets=list(datasets) or None, metrics=['accuracy'] if results else None,
        model_name=name if measured else None, eval_results=measured)
    sections = (
        f'# Model card for {name}\n\n{_introduction(model)}',
        _details(model, prepared, labels, base_model, trained=run is not None), _cost(model),
        _accuracy(model, repo_id, results, prepared, datasets), _usage(model, repo_id), _training(run),
        _limits(model, results), _licence(license))
    return ModelCard('---\n' + data.to_yaml() + '\n---\n\n' + '\n\n'.join(filter(None, sections)) + '\n')


def _eval_results(results: Results, dataset: str) -> list[EvalResult] | None:
    """For the Hub's index, which takes accuracies as fractions; none for a part of a data set."""
    found = results.validation
    if results.limit is not None:
        return None
    return [
        EvalResult(
            task_type='image-classification', dataset_type=dataset, dataset_name=dataset, dataset_split=results.split,
            metric_type='accuracy', metric_name=f'Top-{k} accuracy', metric_value=round(value / 100, 4))
        for k, value in ((1, found.dynamic.top1), (found.k, found.dynamic.top5)) if k < found.num_classes
    ]


def _introduction(model: DRNet) -> str:
    plugin = ('It is a model for [timm](https://github.com/huggingface/pytorch-image-models) with the plugin'
              ' `timm-drnet`.')
    start = f'A [Dynamic Resolution Network]({_PAPER}) around `{_backbone(model)}`, for {model.num_classes:,} classes.'
    if model.args.router == 'cascade':
        ran = [f'{model.resolutions[j]}' for j in rungs(model.args.thresholds)]
        return (f'{start} It is a cascade: the backbone sees each image at {" px, then at ".join(ran)} px, and stops at'
                f' the first answer that is sure enough. {plugin}')
    if model.args.stage == 'pretrain':
        return (f'{start} **It is a model of the pretrain stage and not dynamic:** its backbone was trained at'
                f' {_sizes(model, "and")} px, its resolution predictor was not, and every image runs at'
                f' {model.resolutions[0]} px. It is there to start the joint stage from. {plugin}')
    return (f'{start} A small predictor looks at each image at {model.args.predictor_size} px and picks the resolution'
            f' at which the backbone then classifies it: {_sizes(model)} px. {plugin}')


def _details(
        model: DRNet,
        prepared: Mapping[str, Any],
        labels: Sequence[str] | None,
        base_model: str | None,
        trained: bool,
) -> str:
    backbone = sum(p.numel() for p in model.branch(0).parameters())
    predictor = sum(p.numel() for name, p in model.named_parameters() if name.startswith('predictor.'))
    further = sum(p.numel() for p in model.parameters()) - backbone - predictor
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's attribute
    if labels is None and len(cfg.get('label_names') or ()) == model.num_classes:
        labels = cfg['label_names']
    classes = f'{model.num_classes:,}'
    if labels is not None:
        classes += f': {", ".join(labels[:_NAMED])}{", ..." if len(labels) > _NAMED else ""}'
    norms = 'of their own for each' if model.args.resolution_aware_norm else 'shared by all'
    rows: dict[str, Any] = {
        'model': f'`{".".join(filter(None, (cfg["architecture"], cfg.get("tag"))))}`',
        'classes': classes,
        'candidate resolutions': f'{", ".join(map(str, model.resolutions))} px, with norms {norms}',
        'parameters': f'backbone {backbone:,}, predictor {predictor:,}, further norms {further:,}',
        'input': f'{model.in_chans} channels, {prepared["input_size"][-1]} px, crop {prepared["crop_pct"]},'
                 f' {prepared["interpolation"]}',
    }
    cascade = model.args.router == 'cascade'  # which has no stages, and no use for what a predictor is trained with
    if not cascade or model.args.stage == 'pretrain':
        rows['stage'] = model.args.stage
    elif trained:
        rows['trained'] = 'every image at all resolutions'
        if model.args.distill:
            rows['trained'] += f', their ensemble as a teacher (`distill={model.args.distill:g}`)'
        if model.args.distill_topdown:
            rows['trained'] += f', larger ones of smaller ones (`distill_topdown={model.args.distill_topdown:g}`)'
    if not cascade and (trained or model.args.alpha is not None):  # otherwise they need not be those of the training
        rows |= {
            '`alpha`, target of the average cost': (
                'none' if model.args.alpha is None
                else f'{model.args.alpha} {"GFLOPs" if model.args.cost == "flops" else "ms"}'),
            '`eta`, weight of the FLOPs loss': model.args.eta,
            '`tau`, temperature': model.args.tau,
        }
    if model.args.cost_weight:
        rows['`cost_weight`, position of the dial'] = f'{model.args.cost_weight:.4g}; 0 is the choice as trained'
    if cascade:
        rows['`thresholds`, confidence with which an image stops'] = ', '.join(
            f'{r} px: {"left out" if t is None else f"{t:.4g}"}'
            for r, t in zip(model.resolutions[1:], model.args.thresholds, strict=True))
    if base_model:
        rows['started from'] = f'[{base_model}](https://huggingface.co/{base_model})'
    if cfg.get('origin_url') not in (None, _PAPER):
        rows['weights from'] = cfg['origin_url']
    return '## Model details\n\n' + _table(('', ''), rows.items())


def _cost(model: DRNet) -> str:
    rows = cost_table(model)
    columns = {'backbone': [row.backbone_flops for row in rows], 'predictor': [row.predictor_flops for row in rows],
               'together': [row.total_flops for row in rows]}
    if model.args.router == 'cascade':
        del columns['predictor']
        columns['with the smaller rungs'] = columns.pop('together')
    cells = ([f'{n / 1e6:.1f} M' for n in numbers] for numbers in zip(*columns.values(), strict=True))
    return (
        '## Cost\n\nMultiply-accumulates of convolutions and linear layers, for one image:\n\n' + _table(
            ('resolution', *columns, f'backbone, of that at {rows[0].resolution} px'),
            ([f'{row.resolution} px', *texts, f'{100 * row.fraction:.1f} %']
             for row, texts in zip(rows, cells, strict=True))))


def _accuracy(
        model: DRNet,
        repo_id: str,
        results: Results | None,
        prepared: Mapping[str, Any],
        datasets: Sequence[str],
) -> str:
    command = f'timm-drnet validate hf-hub:{repo_id} DATA'
    if results is None:
        return f'## Accuracy\n\nNot measured. `{command}` does it.'
    found = results.validation
    if results.crop_pct != prepared['crop_pct']:
        command += f' --crop-pct {results.crop_pct}'
    command += f'{" --amp" if results.amp else ""}{f" --limit {results.limit}" if results.limit else ""}'
    size = found.resolutions[0].resolution
    images = f'{"the first " if results.limit else ""}{found.images:,} images of the {results.split} split'
    source = f' of `{datasets[0]}`' if datasets else ''
    lines = [
        f'On {images}{source}, at {size} px, crop {results.crop_pct}, {results.interpolation}'
        f'{", in bfloat16" if results.amp else ""} (`{command}`)'
        f'{f"; {results.unreadable} more could not be read" if results.unreadable else ""}:']
    rows = []
    cascade = found.router == 'cascade'
    if found.routed:
        how = 'where its answer is sure enough' if cascade else 'at its predicted resolution'
        rows.append([f'**dynamic: each image {how}**', *_cells(found, found.dynamic)])
        rows += [
            [f'of these {row.images:,} ({100 * row.share:.1f} %) at {row.resolution} px', *_cells(found, row.routed)]
            for row in found.resolutions]
    without = '' if cascade else ', without predictor'
    rows += [[f'held at {row.resolution} px{without}', *_cells(found, row.held)] for row in found.resolutions]
    if found.verdict is not None:
        cells = _cells(found, found.dynamic)
        top1 = f'{found.verdict.static.top1:.2f} %'
        rows.append(['static line at the same cost', top1, *['-'] * (len(cells) - 3), *cells[-2:]])
        rows.append(['lots at the same shares', *_cells(found, found.random.mean, found.random.std)])
    lines.append(_table(('', *_accuracies(found), 'GFLOPs per image', f'of the backbone at {size} px'), rows))
    if found.verdict is not None:
        lines.append(
            f'{found.verdict.sentence} The static line joins the model held at each resolution, and needs no router.')
        lines += [f'**Warning:** {warning}' for warning in found.verdict.warnings]
    if results.interpolation != prepared['interpolation']:
        lines.append(f'The configuration says {prepared["interpolation"]}; the measurement was made otherwise.')
    return '## Accuracy\n\n' + '\n\n'.join(lines)


def _accuracies(found: Validation) -> list[str]:
    """Names of the accuracies that say something: top-5 of five classes is always 100 %."""
    return ['top-1', f'top-{found.k}'] if found.k < found.num_classes else ['top-1']


def _cells(found: Validation, score: Score | None, std: Accuracy | None = None) -> list[str]:
    names = _accuracies(found)
    if score is None:
        return ['-'] * (len(names) + 2)
    values = [(score.top1, std and std.top1), (score.top5, std and std.top5)][:len(names)]
    texts = [f'{mean:.2f} %' if deviation is None else f'{mean:.2f} ± {deviation:.2f} %' for mean, deviation in values]
    decimals = 3 if found.resolutions[0].held.gflops >= 0.1 else 4
    return [*texts, f'{score.gflops:.{decimals}f}', f'{100 * score.fraction:.1f} %']


def _usage(model: DRNet, repo_id: str) -> str:
    mode = 'RGB' if model.in_chans == 3 else 'L'
    return f"""\
## Usage

```python
import timm
import timm_drnet  # registers the model
import torch
from PIL import Image

model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
images = transform(Image.open('photo.jpg').convert('{mode}'))[None]

with torch.inference_mode():
    probabilities = model(images).softmax(dim=1)  # each image at the resolution chosen for it
    choice = model.predict_resolution(images)     # indices into model.resolutions
```

On the command line, with the resolution and the cost of every image:

    timm-drnet predict photos --model hf-hub:{repo_id}

In transformers:

```python
import timm_drnet
from transformers import pipeline

classify = pipeline('image-classification', model='{repo_id}')
print(classify('photo.jpg'))
```"""


def _training(run: TrainingRun | None) -> str:
    if run is None or not run.args:
        return ''
    weights = 'weights averaged over the steps (EMA)' if run.averaged else 'weights'
    epochs = '' if run.epochs is None else f' after {run.epochs} {"epoch" if run.epochs == 1 else "epochs"}'
    lines = [f"The {weights}{epochs} of timm's `train.py` with these settings:", f'```yaml\n{recipe(run.args)}```']
    world_size = run.args.get('world_size') or 1
    if world_size > 1:
        lines.append(f'`batch_size` is that of each of {world_size} processes.')
    if run.args.get('initial_checkpoint') or run.args.get('pretrained_path'):
        lines.append('It started from the weights of an earlier training.')
    return '## Training\n\n' + '\n\n'.join(lines)


def _limits(model: DRNet, results: Results | None) -> str:
    lines = [
        f'Whatever an image shows, it gets one of the {model.num_classes:,} labels.',
        'FLOPs are counted and not timed; how much time they save depends on the machine and the batch.',
    ]
    classifier: Any = None if model.predictor is None else model.predictor.get_classifier()  # type: ignore[operator]
    if model.args.uses_predictor and not classifier.weight.any():
        lines.append(f'The predictor is not trained: it chooses {model.resolutions[0]} px for every image.')
    if results is not None and results.validation.routed:
        found = results.validation
        idle = [str(row.resolution) for row in found.resolutions if row.images == 0]
        if idle:
            lines.append(f'No image of the measurement was run at {" or ".join(idle)} px.')
    return '## Limits\n\n' + '\n'.join(f'- {line}' for line in lines)


def _licence(license: str) -> str:
    told = (
        'No licence was named for the weights; ask their authors.' if license == UNNAMED
        else f'The weights are under the licence `{license}`.')
    return f"""\
## Licence and citation

{told} The method is that of [Zhu et al., NeurIPS 2021]({_PAPER}):

```bibtex
{_CITATION}
```"""


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in line) + ' |' for line in lines)


def _backbone(model: DRNet) -> str:
    return str(model.backbone.pretrained_cfg['architecture'])  # type: ignore[index]


def _sizes(model: DRNet, word: str = 'or') -> str:
    *others, last = map(str, model.resolutions)
    return f'{", ".join(others)} {word} {last}' if others else last
