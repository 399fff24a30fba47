"""The rows: what is trained one after another in a process for each chain and seed, the most wanted rows first.

- `distilled`: all resolutions, the ensemble as their teacher, and at the same time the predictor by utility. The
  predictor changes nothing for the backbone, so the same weights are those of a pretrain stage for a cascade. Then
  predictors alone, of the frozen backbone.
- `teacher`: the same network in the pretrain stage, which takes less work without that predictor.
- `topdown`: the same, but larger resolutions teach smaller ones, too, with the weights of RS-Nets' full version.
- `static`: networks that know one size only.
- `paper`: the pretrain stage as in the paper, then its joint stage.
"""

import copy
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import timm_drnet
from timm_drnet.core.predictor import create_predictor
from timm_drnet.data.output_folder import staged_file
from timm_drnet.train.loss import prepare_training

from .answers import collect, kept, save, top1
from .images import Images
from .networks import RESOLUTIONS, FeaturePredictor, Held, drnet, plain
from .stages import OutOfTime, Setting, fit, optimizer_for

CHAINS = ('distilled', 'static', 'paper', 'teacher', 'topdown')
PREDICTORS = ('features', 'scratch', 'classes')
"""How a predictor that is trained alone begins: as the backbone does, anew, or with the classes learned."""
TAUGHT = ('utility', 'teacher')
"""Rows whose network has the ensemble as teacher: the same network, of which a run has one or the other."""
SPENT = 0.7
"""What an image should cost, predictor included, as a fraction of the backbone's cost at the largest size."""
LINES = 'rows.jsonl'
"""The file with a line for each finished row."""


def finished(output: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines of an output folder, by row and seed; of a row that was measured again, the last."""
    path = output / LINES
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(one['row'], one['seed']): one for one in lines}


class Chain:
    """One process's work: the rows of a chain for one seed.

    Args:
        name: Of `CHAINS`.
        seed: Of weights, order and crops.
        images: By their use: ``train``; ``predictor``, further ones for predictors alone; ``dial``, to set thresholds;
            ``val``.
        setting: Epochs and rates.
        output: Folder for answers and the lines of all rows; those that are there already are not trained again.
        only: Rows to train; all by default.
    """

    def __init__(
            self,
            name: str,
            seed: int,
            images: dict[str, Images],
            setting: Setting,
            output: Path,
            only: Collection[str] | None = None,
    ) -> None:
        self.name, self.seed, self.images, self.setting, self.output = name, seed, images, setting, output
        self.only = only
        self.device = images['train'].pixels.device
        self.num_classes = int(images['train'].labels.max()) + 1
        self.generator = torch.Generator(self.device)
        self.criterion = nn.CrossEntropyLoss()
        self.began = time.time()
        self.costs: list[float] = []
        self.predictor_cost = 0.0

    def run(self) -> None:
        """Train the rows, until the deadline."""
        try:
            getattr(self, f'_{self.name}')()
        except OutOfTime:
            self.tell('out of time')

    def benchmark(self, seconds: float) -> float:
        """Train this chain's first row for some seconds, and tell those of a step."""
        model, loss_of = self._first()
        optimizer = optimizer_for(model, self.setting)
        some = self.images['train'].part(torch.arange(self.setting.batch, device=self.device))
        gently = replace(self.setting, lr=1e-3)
        began, steps = time.time(), 0
        while time.time() < began + seconds:
            fit(model, loss_of, optimizer, some, gently, 1, 2, self.generator)
            steps += 1
        return (time.time() - began) / steps

    def predictors(self, kinds: Sequence[str], where: str, epochs: int, taus: Sequence[float]) -> None:
        """Train predictors alone again, of the backbone that the row ``utility`` or ``teacher`` has left.

        Args:
            kinds: Of `PREDICTORS`.
            where: On images that the backbone was not trained on, ``held``, or that it was, ``train``.
            epochs: Over these images.
            taus: Temperature of the targets, or that of the first and that of the last epoch.
        """
        suffix = '' if set(taus) == {1} else f'-tau{"-".join(f"{tau:g}" for tau in taus)}'
        files = [self.output / f'{row}-seed{self.seed}.pt' for row in TAUGHT]
        left = [file for file in files if file.exists()]
        if not left:
            raise FileNotFoundError(f'There is neither of {", ".join(map(str, files))}: train one of these rows first.')
        for kind in kinds:
            model, _ = self._first()
            model.load_state_dict(torch.load(left[0], map_location=self.device))
            self.generator.manual_seed(self.seed)
            part = {'held': 'predictor', 'train': 'train'}[where]
            self._predictor_alone(f'alone-{where}-{kind}{suffix}', model, kind, part, epochs, taus)

    # The chains.

    def _first(self) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
        if self.name == 'static':
            return self._plain(RESOLUTIONS[0])
        if self.name == 'distilled':
            return self._drnet(
                stage='joint', joint_resolutions='all', predictor_loss='utility', distill=1.0, eta=0.2)
        if self.name == 'topdown':
            weight = 2 / (len(RESOLUTIONS) + 1)
            return self._drnet(stage='pretrain', distill=weight, distill_topdown=weight)
        return self._drnet(stage='pretrain', distill=float(self.name == 'teacher'))

    def _teacher(self) -> None:
        self._distill('teacher')

    def _topdown(self) -> None:
        self._distill('topdown')

    def _distilled(self) -> None:
        model = self._distill('utility')
        few, many = (('held', 'predictor', 40), ('train', 'train', max(2, self.setting.cooldown)))
        for kind, (where, part, epochs) in (
                ('features', few), ('features', many), ('scratch', many), ('scratch', few), ('classes', many),
                ('classes', few)):
            row = f'alone-{where}-{kind}'
            if self._wanted(row):
                self._predictor_alone(row, model, kind, part, epochs)

    def _distill(self, row: str) -> timm_drnet.DRNet:
        """This chain's first row: trained, or as it was left."""
        model, loss_of = self._first()
        weights = self.output / f'{row}-seed{self.seed}.pt'
        if self._wanted(row):
            self._fit(row, model, loss_of)
            with staged_file(weights) as file:
                torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, file)
            self._finish(row, model, whole=True)
        elif weights.exists():
            model.load_state_dict(torch.load(weights, map_location=self.device))
        return model

    def _static(self) -> None:
        for side in RESOLUTIONS:
            self._train_plain(f'static-{side}', side, self.setting)
        longer = replace(self.setting, epochs=round(self.setting.epochs * self._all_work()))
        longer = replace(longer, cooldown=longer.epochs // 4)
        for side in RESOLUTIONS[:2]:  # as many multiplications as the DRNet's training
            share = longer if side == RESOLUTIONS[0] else replace(
                longer, epochs=round(longer.epochs * self._work(RESOLUTIONS[0]) / self._work(side)))
            self._train_plain(f'static-{side}-equal-time', side, replace(share, cooldown=share.epochs // 4))

    def _train_plain(self, row: str, side: int, setting: Setting) -> None:
        if self._wanted(row):
            model, loss_of = self._plain(side)
            self._fit(row, model, loss_of, setting=setting)
            self._finish(row, model, epochs=setting.epochs)

    def _paper(self) -> None:
        rows = [row for row in ('pretrain', 'paper', 'expected', 'paper-no-alpha') if self._wanted(row)]
        if not rows:
            return
        model, loss_of = self._first()
        trunk = self.setting.epochs - self.setting.cooldown
        optimizer = self._fit('trunk', model, loss_of, end=trunk)
        state = copy.deepcopy(model.state_dict())
        if 'pretrain' in rows:
            self._fit('pretrain', model, loss_of, trunk, optimizer=optimizer)
            self._finish('pretrain', model)
        for row, kwargs in (
                ('paper', {'alpha': self._alpha()}),
                ('expected', {'alpha': self._alpha(), 'joint_resolutions': 'all'}),
                ('paper-no-alpha', {})):
            if row not in rows:
                continue
            model, loss_of = self._drnet(stage='joint', eta=0.2, **kwargs)
            model.load_state_dict(state)
            torch.backends.cudnn.benchmark = 'joint_resolutions' in kwargs  # drawn parts come in ever new sizes
            slow = () if 'joint_resolutions' in kwargs else tuple(model.predictor.parameters())
            self._fit(row, model, loss_of, trunk, optimizer=optimizer_for(model, self.setting, slow))
            self._finish(row, model)
        self._checkpoint('trunk').unlink()

    def _predictor_alone(
            self,
            row: str,
            model: timm_drnet.DRNet,
            kind: str,
            part: str,
            epochs: int,
            taus: Sequence[float] = (1.0,),
    ) -> None:
        args = model.args
        if kind == 'features':
            model.predictor = FeaturePredictor(model).to(self.device)
            model.args = replace(args, predictor_size=RESOLUTIONS[-1])
        else:
            model.predictor = create_predictor('inverted_residual', len(RESOLUTIONS), device=self.device)
            if kind == 'classes':
                model.predictor.load_state_dict(self._taught_classes(), strict=False)
        deadline = self.setting.deadline

        class Batches:
            """As `train_predictor` goes through them, once an epoch."""

            def __iter__(_) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
                size = self.setting.batch if part == 'train' else 200
                for batch in self.images[part].batches(size, self.generator):
                    if time.time() > deadline:
                        raise OutOfTime
                    yield batch

        def after(epoch: int, loss: float, shares: tuple[float, ...]) -> None:
            self.tell(f'{row}: epoch {epoch} of {epochs}: loss {loss:.3f}, shares {[round(s, 3) for s in shares]}')
            cool(epoch / max(1, epochs - 1))

        def cool(done: float) -> None:
            model.args = replace(model.args, tau=taus[0] * (taus[-1] / taus[0]) ** done)

        cool(0)
        with torch.autocast(self.device.type, torch.bfloat16):
            timm_drnet.train_predictor(model, Batches(), epochs, lr=2e-3, progress=after)
        self._finish(row, model, answers=False, epochs=epochs)
        model.args = args

    def _taught_classes(self) -> dict[str, torch.Tensor]:
        """Weights, but for the last layer, of a predictor's network that has learned the classes."""
        if not hasattr(self, '_classes'):
            network = create_predictor('inverted_residual', self.num_classes, device=self.device)
            network = network.to(memory_format=torch.channels_last)
            schedule = replace(self.setting, epochs=12, cooldown=6)
            self._fit('classes', network, lambda x, y: self.criterion(network(x), y), setting=schedule)
            self._classes = {k: v for k, v in network.state_dict().items() if not k.startswith('classifier')}
            self._checkpoint('classes').unlink()
        return self._classes

    # What they are made of.

    def _wanted(self, row: str) -> bool:
        """Whether a row is to be trained, and has not been."""
        return (self.only is None or row in self.only) and (row, self.seed) not in finished(self.output)

    def _checkpoint(self, row: str) -> Path:
        return self.output / f'{row}-seed{self.seed}.checkpoint'

    def _drnet(self, **kwargs: Any) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
        if 'joint_resolutions' in kwargs and 'alpha' not in kwargs:
            kwargs['alpha'] = self._alpha()
        torch.manual_seed(self.seed)
        model = drnet(self.num_classes, self.setting.width, **kwargs).to(self.device, memory_format=torch.channels_last)
        self._price(model)
        prepare_training(model)
        return model, lambda x, y: timm_drnet.training_loss(model, self.criterion, model(x), y)

    def _plain(self, side: int) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
        torch.manual_seed(self.seed)
        model = Held(plain(self.num_classes, self.setting.width), side)
        model = model.to(self.device, memory_format=torch.channels_last)
        return model, lambda x, y: self.criterion(model(x), y)

    def _price(self, model: timm_drnet.DRNet) -> None:
        rows = timm_drnet.cost_table(model)
        self.costs, self.predictor_cost = [row.backbone_flops / 1e9 for row in rows], rows[0].predictor_flops / 1e9

    def _alpha(self) -> float:
        if not self.costs:
            self._price(drnet(self.num_classes, self.setting.width))
        return SPENT * self.costs[0] - self.predictor_cost

    def _work(self, side: int) -> float:
        self._alpha()
        return self.costs[RESOLUTIONS.index(side)]

    def _all_work(self) -> float:
        """A step at all resolutions, in steps at the largest."""
        self._alpha()
        return sum(self.costs) / self.costs[0]

    def _fit(
            self,
            row: str,
            model: nn.Module,
            loss_of: Callable[..., torch.Tensor],
            start: int = 0,
            end: int | None = None,
            setting: Setting | None = None,
            optimizer: torch.optim.Optimizer | None = None,
    ) -> torch.optim.Optimizer:
        setting = setting or self.setting
        optimizer = optimizer or optimizer_for(model, setting)
        if start == 0:
            self.generator.manual_seed(self.seed)
        fit(
            model, loss_of, optimizer, self.images['train'], setting, start, end or setting.epochs, self.generator,
            lambda text: self.tell(f'{row}: {text}'), self._checkpoint(row))
        return optimizer

    def _finish(
            self,
            row: str,
            model: nn.Module,
            whole: bool = False,
            answers: bool = True,
            epochs: int | None = None,
    ) -> None:
        """Measure a row, and leave its answers and its line."""
        model.eval()
        line: dict[str, Any] = {
            'row': row, 'seed': self.seed, 'epochs': epochs or self.setting.epochs,
            'seconds_since_start': round(time.time() - self.began, 1)}
        if isinstance(model, timm_drnet.DRNet):
            self._price(model)
            line |= {'gflops': self.costs, 'predictor_gflops': self.predictor_cost}
        arrays: dict[str, Any] = {}
        for part in ('val', 'dial'):
            logits, scores = collect(lambda x: self._answer(model, x), self.images[part])
            if answers:
                arrays |= kept(part, logits, self.images[part].labels)
            if whole:
                arrays[f'{part}_logits'] = logits.half().numpy()
            if part == 'val':
                line['top1'] = top1(logits, self.images[part].labels)
            if scores is not None:
                arrays[f'{part}_scores'] = scores.numpy()
                choice = scores.argmax(dim=1)
                hits = (logits.argmax(dim=2) == self.images[part].labels.cpu()[:, None]).double()
                counts = torch.bincount(choice, minlength=len(RESOLUTIONS))
                line[f'{part}_shares'] = [round(n / len(choice), 4) for n in counts.tolist()]
                line[f'{part}_predictor_top1'] = round(100 * float(hits.gather(1, choice[:, None]).mean()), 3)
        save(self.output / f'{row}-seed{self.seed}.npz', arrays)
        with (self.output / LINES).open('a') as file:
            file.write(json.dumps(line) + '\n')
        self._checkpoint(row).unlink(missing_ok=True)
        self.tell(json.dumps(line))

    def _answer(self, model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(model, timm_drnet.DRNet):
            logits = torch.stack([model.forward_at(x, j).float() for j in range(len(RESOLUTIONS))], dim=1)
            return logits, model.predictor_scores(x) if model.args.uses_predictor else None
        return model(x)[:, None], None

    def tell(self, text: str) -> None:
        """Print a line about this process."""
        print(f'{time.time() - self.began:6.1f} s {self.name} {self.seed}: {text}', flush=True)

