"""Routing statistics: how many images took each resolution, logged at the end of every training and evaluation run.

No loop has to be changed for it: timm's scripts switch the model's mode where an epoch's training and its evaluation
begin, and write a checkpoint where the evaluation ends.
"""

import logging
from collections.abc import Sequence

_logger = logging.getLogger(__name__)


class RoutingStatistics:
    """Counts of images per candidate since the last report."""

    def __init__(self, num_resolutions: int) -> None:
        self.counts = [0] * num_resolutions
        self.images = 0

    def add(self, counts: Sequence[int], images: int) -> None:
        """Add one batch.

        Args:
            counts: Images run at each candidate.
            images: Images in the batch; fewer than the counts' sum where images ran at several resolutions.
        """
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.images += images

    def take(self) -> tuple[list[int], int]:
        """Return the counts and the number of images, and start anew."""
        taken = self.counts, self.images
        self.counts, self.images = [0] * len(self.counts), 0
        return taken


def log_routing(
        name: str,
        counts: Sequence[int],
        images: int,
        resolutions: Sequence[int],
        backbone_flops: Sequence[int],
        predictor_flops: int,
) -> None:
    """Log the average FLOPs per image and the share of each resolution.

    Args:
        name: What was run, such as "training".
        counts: Images run at each candidate.
        images: Images in all.
        resolutions: Side in pixels of each candidate.
        backbone_flops: C_j of each candidate.
        predictor_flops: FLOPs spent on each image by the predictor, 0 where it did not run.
    """
    average = sum(n * c for n, c in zip(counts, backbone_flops, strict=True)) / images + predictor_flops
    shares = ', '.join(f'{r} px: {n / images:.1%}' for r, n in zip(resolutions, counts, strict=True))
    _logger.info(
        f'DRNet {name}: {average / 1e9:.4g} GFLOPs per image on average'
        f' ({average / backbone_flops[0]:.1%} of the backbone at {resolutions[0]} px), {images} images, {shares}')
