"""Training the predictor alone, with the backbone as it is.

A frozen backbone can be asked about every image at every resolution, so nothing has to be drawn: the predictor learns
what every resolution, chosen or not, would have cost, from the expectation of Eq. 8 over its own probabilities or from
the utility of each resolution (``predictor_loss``).
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..cost.costs import Costs, measure_costs
from ..deploy.eval_mode import evaluating
from ..deploy.pieces import forward_in_pieces
from ..model import DRNet
from .loss import flops_loss, predictor_loss


def train_predictor(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        epochs: int,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        progress: Callable[[int, float, tuple[float, ...]], object] = lambda epoch, loss, shares: None,
) -> None:
    """Train the predictor of a DRNet on labelled images; its backbone stays as it is, to the last bit.

    AdamW with a cosine schedule: the paper has no recipe for a predictor alone. The target is the model's own
    ``alpha``, with weight ``eta``. Images that the backbone was not trained on tell more: on others it is right at any
    resolution.

    Args:
        model: A DRNet in the joint stage on the device to use; its predictor is changed in place.
        batches: Images, (B, C, S, S), and labels, (B,) integers; gone through once an epoch, in an order that should be
            new each time.
        epochs: Number of times.
        lr: Learning rate at the beginning.
        weight_decay: Of AdamW.
        progress: Called after each epoch with its number, from 1, the average loss and the shares of the resolutions
            that the predictor chose most probable.

    Raises:
        ValueError: If an argument is out of range, the model is of the pretrain stage, there are no images, or the loss
            is not finite. The predictor is then as it was.
    """
    if not model.args.uses_predictor:
        raise ValueError("The model has no predictor in use: create it with router='predictor' and stage='joint'.")
    if epochs < 1:
        raise ValueError(f'Invalid epochs {epochs}: use at least 1.')
    if not lr > 0:
        raise ValueError(f'Invalid lr {lr}: use a positive learning rate.')
    predictor = _predictor(model)
    costs = measure_costs(model)
    before = {k: v.clone() for k, v in predictor.state_dict().items()}
    optimizer = torch.optim.AdamW(predictor.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    try:
        with evaluating(model):
            for epoch in range(1, epochs + 1):
                loss, shares = _train_epoch(model, batches, costs, optimizer)
                schedule.step()
                progress(epoch, loss, shares)
    except BaseException:
        predictor.load_state_dict(before)
        raise
    finally:
        predictor.zero_grad(set_to_none=True)


def _train_epoch(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        costs: Costs,
        optimizer: torch.optim.Optimizer,
) -> tuple[float, tuple[float, ...]]:
    """Average loss, and shares of the choices."""
    weight = next(model.parameters())
    candidates = len(costs.backbone)
    counts = torch.zeros(candidates, dtype=torch.int64)
    total = 0.0
    model.eval()
    _predictor(model).train()
    for images, target in batches:
        if len(images) < 2:
            continue  # no batch to take the statistics of norms from
        x, target = images.to(weight.device, weight.dtype), target.to(weight.device)
        with torch.no_grad():
            logits = [forward_in_pieces(model, x, j) for j in range(candidates)]
        scores = model.predictor_scores(x)
        p = scores.float().softmax(dim=1)  # Eq. 1
        loss = predictor_loss(model, p, logits, target, costs)
        if model.args.alpha is not None and candidates > 1:
            # Eq. 6 to 8, with p in the place of h
            loss = loss + model.args.eta * flops_loss(p, costs.backbone, model.args.alpha)
        if not loss.isfinite():
            raise ValueError('The loss of the predictor is not finite: use a smaller lr.')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.clear_autocast_cache()  # a caller's autocast would go on with the weights of the first step
        total += loss.item() * len(x)
        counts += torch.bincount(scores.argmax(dim=1), minlength=candidates).cpu()
    images_seen = int(counts.sum())
    if not images_seen:
        raise ValueError('There are no batches of two or more images to train on.')
    return total / images_seen, tuple((counts / images_seen).tolist())


def _predictor(model: DRNet) -> nn.Module:
    assert model.predictor is not None
    return model.predictor
