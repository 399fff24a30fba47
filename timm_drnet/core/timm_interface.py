"""What timm's scripts and utilities ask a model for; in a DRNet all of it is the backbone's."""

from typing import Any

import torch
from timm.models import get_model_args
from torch import nn


class TimmInterface(nn.Module):
    """A model around a timm model, ``backbone``, seen through the views that ``branch`` gives of it."""

    backbone: nn.Module

    def branch(self, index: int) -> nn.Module:
        """A plain timm model that shares the backbone's weights.

        Args:
            index: Which of them.
        """
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of logits, 0 without a classifier."""
        return self.backbone.num_classes  # type: ignore[return-value]  # timm models are not typed

    @property
    def num_features(self) -> int:
        """Channels of the unpooled features."""
        return self.backbone.num_features  # type: ignore[return-value]

    @property
    def head_hidden_size(self) -> int:
        """Channels before the classifier."""
        return self.backbone.head_hidden_size  # type: ignore[return-value]

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.backbone.in_chans  # type: ignore[return-value]

    @property
    def feature_info(self) -> Any:
        """timm's description of the backbone's feature levels."""
        return self.backbone.feature_info

    @property
    def global_pool(self) -> str | None:
        """Kind of pooling, which timm records for the Hub."""
        return get_model_args(self.backbone).get('global_pool')

    def get_classifier(self) -> Any:
        """The backbone's classifier."""
        return self.backbone.get_classifier()  # type: ignore[operator]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the backbone's classifier.

        Args:
            num_classes: Number of logits; 0 for pooled embeddings.
            global_pool: Another pooling, or None to keep it.
        """
        self.backbone.reset_classifier(num_classes, global_pool)  # type: ignore[operator]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade the backbone's activations for a second forward in training."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Two groups, the predictor first: ``--layer-decay 0.1`` gives it a tenth of the learning rate."""
        return {'predictor': r'^predictor', 'backbone': r'^backbone'}

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters that take no weight decay."""
        names = getattr(self.backbone, 'no_weight_decay', set)
        return {f'backbone.{name}' for name in names()}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Unpooled features of the largest branch at the input's own size; nothing is routed."""
        return self.branch(0).forward_features(x)  # type: ignore[no-any-return, operator]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify what `forward_features` returned."""
        return self.branch(0).forward_head(x, pre_logits=pre_logits)  # type: ignore[no-any-return, operator]

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's intermediate features, of the largest branch at the input's own size; nothing is routed."""
        return self.branch(0).forward_intermediates(x, *args, **kwargs)  # type: ignore[operator]

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Drop the backbone's layers that the wanted intermediate features do not need."""
        return self.backbone.prune_intermediate_layers(*args, **kwargs)  # type: ignore[operator]
