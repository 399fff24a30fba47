"""What timm's scripts and utilities ask a model for; in a DRNet all of it is the backbone's."""

from typing import Any

import torch
from timm.models import get_model_args, get_model_traits
from torch import nn


def _of_backbone(name: str, meaning: str) -> Any:
    return property(lambda self: getattr(self.backbone, name), doc=meaning)


class TimmInterface(nn.Module):
    """A model around a timm model, ``backbone``, seen through the views that ``branch`` gives of it."""

    backbone: nn.Module
    predictor: nn.Module | None

    num_classes = _of_backbone('num_classes', 'Number of logits, 0 without a classifier.')
    num_features = _of_backbone('num_features', 'Channels of the unpooled features.')
    head_hidden_size = _of_backbone('head_hidden_size', 'Channels before the classifier.')
    in_chans = _of_backbone('in_chans', 'Channels of the images.')
    feature_info = _of_backbone('feature_info', "timm's description of the backbone's feature levels.")

    def branch(self, index: int) -> Any:
        """A plain timm model that shares the backbone's weights, one of several."""
        raise NotImplementedError

    @property
    def global_pool(self) -> str | None:
        """Kind of pooling, which timm records for the Hub."""
        return get_model_args(self.backbone).get('global_pool')

    def get_classifier(self) -> Any:
        """The backbone's classifier."""
        return self.backbone.get_classifier()  # type: ignore[operator]  # timm models are not typed

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the backbone's classifier; 0 classes are for pooled embeddings, None keeps the pooling."""
        self.backbone.reset_classifier(num_classes, global_pool)  # type: ignore[operator]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade the backbone's activations for a second forward in training."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Two groups, the predictor first: ``--layer-decay 0.1`` gives it a tenth of the learning rate."""
        return {'predictor': r'^predictor', 'backbone': r'^backbone'}

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters that take no weight decay."""
        return {f'backbone.{name}' for name in getattr(self.backbone, 'no_weight_decay', set)()}

    def forward_features(self, x: torch.Tensor) -> Any:
        """Unpooled features of the largest branch at the input's own size; nothing is routed."""
        return self.branch(0).forward_features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> Any:
        """Pool and classify what `forward_features` returned."""
        return self.branch(0).forward_head(x, pre_logits=pre_logits)

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's intermediate features, of the largest branch at the input's own size; nothing is routed."""
        return self.branch(0).forward_intermediates(x, *args, **kwargs)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Drop the backbone's layers that the wanted intermediate features do not need."""
        return self.backbone.prune_intermediate_layers(*args, **kwargs)  # type: ignore[operator]

    def _first_convs(self) -> tuple[str, ...]:
        """Names of the convolutions that see the image: what timm adapts to another number of channels."""
        names = get_model_traits(self.backbone).get('first_conv') or ()
        stems = [f'backbone.{n}' for n in ((names,) if isinstance(names, str) else names)]
        if self.predictor is not None:
            modules = self.predictor.named_modules(prefix='predictor')
            stems.append(next(name for name, module in modules if isinstance(module, nn.Conv2d)))
        return tuple(stems)
