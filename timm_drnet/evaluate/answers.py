"""Answers: all that a DRNet says about some images, collected in one pass over them.

In eval mode an answer does not depend on the other images of a batch. So what the model does as it is used is its
answer at the resolution that its router chooses, and the choice follows from what the router has to go by: neither need
be computed once more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..core.drnet import DRNet
from ..core.routing import check_images
from ..cost.thresholds import stop
from ..deploy.eval_mode import evaluating
from ..deploy.pieces import forward_in_pieces

_MOST = 5  # classes of an answer


@dataclass(frozen=True, eq=False)
class Answers:
    """N images at M candidate resolutions, the largest first; all tensors are on the CPU."""

    labels: torch.Tensor | None
    """The right class, (N,) integers; None if it is not known."""
    scores: torch.Tensor | None
    """The predictor's, before the dial, (N, M) float32; None where no predictor is in use."""
    classes: torch.Tensor
    """The most probable classes at each resolution, the first k of them, (N, M, k) integers; k is 5, or the number of
    classes if there are fewer, or 0 where only the predictor was asked."""
    probabilities: torch.Tensor
    """Of these classes, (N, M, k) float32."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.classes)

    @property
    def hits(self) -> torch.Tensor:
        """Whether the label is first, and whether it is one of the first k, (N, M, 2) booleans."""
        if self.labels is None:
            raise ValueError('The images have no labels: give pairs of images and labels.')
        found = self.classes == self.labels[:, None, None]
        return torch.stack([found[..., 0], found.any(dim=2)], dim=2)


@torch.inference_mode()
def collect_answers(
        model: DRNet,
        batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
        amp: bool = False,
        channels_last: bool = False,
        only_scores: bool = False,
) -> Answers:
    """Ask a DRNet about every image: the predictor once, if it is in use, and the classifier at each resolution.

    Args:
        model: A DRNet, on the device to use. It is put in eval mode for it.
        batches: Images, (B, C, S, S), or pairs of images and labels, (B,) integers, on any device.
        amp: Whether to run under autocast to bfloat16.
        channels_last: Whether to give the model images in that memory format.
        only_scores: Whether to spare images without labels the classifier, which costs many times what the predictor
            does.

    Returns:
        The answers, in the order of the images.

    Raises:
        ValueError: If the model has no classifier, images are no batch of square ones of floating point, an output is
            not finite, there is no image or no such label, or only some batches have labels.
    """
    if only_scores and not model.args.uses_predictor:
        raise ValueError(
            "The model is of the pretrain stage and its predictor is not in use: create it with stage='joint'.")
    if model.num_classes < 1 and not only_scores:
        raise ValueError('The model has no classifier (num_classes=0), so it has no answers.')
    weight = next(model.parameters())
    labels, scores, classes, probabilities = [], [], [], []
    with evaluating(model):
        for batch in batches:
            images, target = (batch, None) if isinstance(batch, torch.Tensor) else (batch[0], batch[1])
            if target is not None:
                labels.append(_checked(target, model.num_classes))
            most = 0 if only_scores and target is None else min(_MOST, model.num_classes)
            check_images(images)
            x = images.to(weight.device, weight.dtype)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(weight.device.type, torch.bfloat16, enabled=amp):
                if model.args.uses_predictor:
                    scores.append(model.predictor_scores(x).float().cpu())
                logits = torch.stack([
                    forward_in_pieces(model, x, j).float() if most else x.new_zeros(len(x), 0)
                    for j in range(len(model.resolutions))], dim=1)
            top = logits.topk(most, dim=2)
            classes.append(top.indices.cpu())
            probabilities.append(logits.softmax(dim=2).gather(2, top.indices).cpu())
            _check_finite(logits, 'model gives logits')
            for one in scores[-1:]:
                _check_finite(one, 'predictor gives scores')
    if not classes:
        raise ValueError('There are no images.')
    if labels and len(labels) != len(classes):
        raise ValueError('Some batches have labels and others have none: give all of them, or none.')
    return Answers(
        torch.cat(labels) if labels else None, torch.cat(scores) if scores else None, torch.cat(classes),
        torch.cat(probabilities))


def choose(model: DRNet, answers: Answers) -> torch.Tensor:
    """The resolutions that a DRNet chooses, read off its answers.

    Args:
        model: The DRNet. Its dial may have moved since; its weights may not have changed.
        answers: Of the DRNet.

    Returns:
        Indices into ``resolutions``, (N,) int64, as `DRNet.predict_resolution` gives them.
    """
    if answers.scores is not None:
        return (answers.scores - torch.tensor(model.prices, dtype=torch.float32)).argmax(dim=1)
    if model.args.router == 'cascade':
        return stop(model.args.thresholds, answers.probabilities[:, :, 0])
    return torch.zeros(len(answers), dtype=torch.int64)


def _checked(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels on the CPU, if all of them are classes."""
    target = target.cpu()
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < num_classes:
        raise ValueError(
            f'The labels of a batch run from {int(target.min())} to {int(target.max())}, but the model has'
            f' {num_classes} classes, counted from 0.')
    return target.long()


def _check_finite(output: torch.Tensor, what: str) -> None:
    if not output.isfinite().all():
        raise ValueError(f'The {what} that are not finite: the weights of the model are damaged.')
