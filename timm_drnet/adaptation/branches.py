"""The smaller branches: what is tried on each, and what stays."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..cascade.climb import confidence
from ..core.drnet import DRNet
from ..deploy.eval_mode import evaluating
from ..deploy.pieces import forward_in_pieces
from .norms import State, estimate_statistics, get_state, mix_statistics, private_norms, set_state
from .photographs import Photographs
from .progress import Progress
from .quality import Trial, compare, kept_answers
from .tuning import tune_norms

_PARTS = (0.25, 0.5)
"""Of new statistics, that are tried: more of them hurt wherever it was measured."""


@dataclass(frozen=True)
class Settings:
    """How to adapt."""

    target: float = 0.75
    """Average cost to reach, as a fraction of the largest branch's, everything paid for."""
    epochs: int = 4
    """Epochs of tuning for each smaller branch; 0 leaves their norms as they are."""
    predictor_epochs: int = 6
    """Epochs of training the predictor, if there is one."""
    lr: float = 2e-3
    """Learning rate of the tuning."""
    batch_size: int = 32
    """Images in a batch."""
    workers: int = 0
    """Processes that read images."""
    seed: int = 42
    """Seed of the views that are tuned on."""

    def __post_init__(self) -> None:
        """Check that every setting is in its range."""
        for name, valid, remedy in (
                ('target', 0 < self.target <= 1, "a fraction of the largest resolution's cost, above 0 and up to 1"),
                ('epochs', self.epochs >= 0, 'a whole number, 0 for no tuning'),
                ('predictor_epochs', self.predictor_epochs >= 1, 'a whole number of at least 1'),
                ('lr', self.lr > 0 and math.isfinite(self.lr), 'a positive learning rate'),
                ('batch_size', self.batch_size >= 2, 'at least 2'),
                ('workers', self.workers >= 0, 'a number of processes, or 0')):
            if not valid:
                raise ValueError(f'Invalid {name} {getattr(self, name)}: use {remedy}.')


@dataclass(frozen=True, eq=False)
class _Judgement:
    """Of a branch as it was at some time."""

    agreement: float
    """Per cent of the held-out images that it answers as the largest does."""
    kept: torch.Tensor
    """Which of them end with the largest's answer at the target, (N,) booleans."""
    norms: State
    """Those of the branch at that time."""


class Branches:
    """The smaller branches of a DRNet, and the photographs that judge them.

    Args:
        model: On the device to use; its smaller branches change in place.
        photographs: To tune on and held out.
        settings: How to adapt.
        costs: Of each candidate, largest first.
        progress: Where what is done is kept.
        report: Called with a line about each thing that was tried.
        watch: Called with each trial, while the branch is as it was tried.
    """

    def __init__(
            self,
            model: DRNet,
            photographs: Photographs,
            settings: Settings,
            costs: tuple[float, ...],
            progress: Progress,
            report: Callable[[str], object] = lambda line: None,
            watch: Callable[[Trial], object] = lambda trial: None,
    ) -> None:
        self.model = model
        self.photographs = photographs
        self.settings = settings
        self.costs = costs
        self.progress = progress
        self.report = report
        self.watch = watch
        self.batch_size = min(settings.batch_size, len(photographs.paths) - photographs.held_out)
        self._largest: torch.Tensor | None = None  # what the largest branch answers, (N,), once it was asked
        self._taught: dict[int, list[torch.Tensor]] = {}  # and its logits for the views of each epoch

    def adapt(self) -> list[Trial]:
        """Try what there is to try on each smaller branch, from the largest on; what does not help is undone."""
        trials = []
        for index in range(1, len(self.costs)):
            done = self.progress.get(self._key(index, 'done'))
            if done is None:
                done = self._adapt(index)
                norms = get_state(private_norms(self.model, index))
                self.progress.keep(self._key(index, 'done'), [[asdict(trial) for trial in done], norms])
                self.progress.keep(self._key(index, 'tuning'), None)
            else:
                told, norms = done
                done = [Trial(**trial) for trial in told]
                set_state(private_norms(self.model, index), norms)
            trials += done
        return trials

    def _adapt(self, index: int) -> list[Trial]:
        """Changes of one branch, which build on each other."""
        source = self._judge(index)
        trials = [Trial(self.model.resolutions[index], '', source.agreement, 0.0, 0.0, True)]
        self._tell(trials[-1])
        if not self.settings.epochs:
            return trials
        best = source
        new = estimate_statistics(self.model, index, self._views(0))
        norms = private_norms(self.model, index)
        before = get_state(norms)
        for part in _PARTS:
            set_state(norms, mix_statistics(before, new, part))
            best = self._try(index, f'{100 * part:.0f} % new statistics', best, trials)
        self._tune(index)
        self._try(index, 'norms tuned', best, trials)
        return trials

    def _try(self, index: int, change: str, best: _Judgement, trials: list[Trial]) -> _Judgement:
        """Judge the branch as it is now; it goes back to the best so far if it is no better."""
        now = self._judge(index)
        gain, error = compare(best.kept, now.kept)
        kept = gain > error
        trials.append(Trial(self.model.resolutions[index], change, now.agreement, gain, error, kept))
        self._tell(trials[-1])
        if not kept:
            set_state(private_norms(self.model, index), best.norms)
        return now if kept else best

    def _tune(self, index: int) -> None:
        key = self._key(index, 'tuning')
        norms = private_norms(self.model, index)
        resume = self.progress.get(key)
        if resume is not None:
            set_state(norms, resume['norms'])

        def after_epoch(epoch: int, loss: float, state: dict[str, Any]) -> None:
            self.progress.keep(key, {**copy.deepcopy(state), 'norms': get_state(norms)})
            side = self.model.resolutions[index]
            self.report(f'{side} px: tuning, epoch {epoch} of {self.settings.epochs}, loss {loss:.4f}')

        images = len(self.photographs.paths) - self.photographs.held_out
        tune_norms(
            self.model, index, self.taught_views, self.settings.epochs,
            images // self.batch_size, self.settings.lr, resume, after_epoch)

    def _views(self, number: int) -> Iterator[torch.Tensor]:
        """The same for every branch, so that the largest need be asked once."""
        return self.photographs.views(
            self.model, self.settings.seed + number, self.batch_size, self.settings.workers)

    def taught_views(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of an epoch, each batch with the logits of the largest branch, (B, num_classes)."""
        known = self._taught.get(epoch)
        found = []
        for number, x in enumerate(self._views(epoch)):
            logits = self._ask_largest(x) if known is None else known[number]
            found.append(logits)
            yield x, logits
        self._taught[epoch] = found

    @torch.no_grad()
    def _ask_largest(self, x: torch.Tensor) -> torch.Tensor:
        weight = next(self.model.parameters())
        return forward_in_pieces(self.model, x.to(weight.device, weight.dtype), 0).half().cpu()

    @torch.inference_mode()
    def _judge(self, index: int) -> _Judgement:
        """What held-out photographs say of a branch as it is now."""
        weight = next(self.model.parameters())
        classes, sure, largest = [], [], []
        with evaluating(self.model):
            for images in self.photographs.evaluation(self.model, False, self.batch_size, self.settings.workers):
                x = images.to(weight.device, weight.dtype)
                logits = forward_in_pieces(self.model, x, index)
                classes.append(logits.argmax(dim=1).cpu())
                sure.append(confidence(logits).cpu())
                if self._largest is None:
                    largest.append(forward_in_pieces(self.model, x, 0).argmax(dim=1).cpu())
        if not classes:
            raise ValueError('None of the photographs that were held out is readable.')
        if self._largest is None:
            self._largest = torch.cat(largest)
        agrees = torch.cat(classes) == self._largest
        going = None  # a predictor's choice does not depend on the branches
        if self.model.args.router == 'cascade':
            going = (self.settings.target * self.costs[0] - self.costs[index]) / self.costs[0]
        return _Judgement(
            100 * float(agrees.double().mean()), kept_answers(agrees, torch.cat(sure), going),
            get_state(private_norms(self.model, index)))

    def _tell(self, trial: Trial) -> None:
        self.watch(trial)
        what = f'{trial.resolution} px: {trial.change or "as it comes"}, answers {trial.agreement:.1f} % as the largest'
        if trial.change:
            what += f', {trial.gain:+.2f} ± {trial.error:.2f} points at the target'
            what += ': kept' if trial.kept else ': undone'
        self.report(what)

    def _key(self, index: int, what: str) -> str:
        return f'{self.model.resolutions[index]} {what}'
