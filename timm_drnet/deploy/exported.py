"""Run a DRNet that was exported to ``torch.export`` programs."""

import io
import os
from collections.abc import Callable
from typing import Any

import torch

from ..cascade.climb import climb
from ..core.norm import resize
from ..core.routing import check_choices, check_images, route
from ..data.pixels import first_line
from .manifest import InvalidExportError, read_file, read_manifest
from .priced_predictor import chosen


class ExportedDRNet:
    """A DRNet made of ``torch.export`` programs, with the methods of the model itself; it runs on the CPU.

    Every file is checked against the manifest before it is loaded. A program can hold code, so load only what you
    trust.

    Args:
        path: A folder written by ``timm-drnet export --format torch``.

    Raises:
        InvalidExportError: If the folder is no complete, unchanged export, or of a newer format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        manifest = read_manifest(path, 'torch')
        self.manifest: dict[str, Any] = manifest
        """All that the export recorded: the costs of the resolutions, how images are prepared, versions, licence."""
        self.resolutions: tuple[int, ...] = tuple(manifest['resolutions'])
        """Candidate sides in pixels, largest first."""
        self.labels: tuple[str, ...] = tuple(manifest['labels'])
        """One for each class."""
        files = manifest['files']
        self._predictor = self._load(path, files['predictor']) if files['predictor'] else None
        self._branches = [self._load(path, entry) for entry in files['branches']]
        self._climbs = manifest['router'] == 'cascade' and manifest['num_classes'] > 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Classify each image at the resolution chosen for it.

        Args:
            x: Normalized images, (B, C, S, S), of any size S.

        Returns:
            Logits, (B, num_classes); in the pretrain stage those of the largest resolution.

        Raises:
            ValueError: If x is not a batch of square images, or the predictor's scores are not finite.
        """
        check_images(x)
        return self._climb(x)[0] if self._climbs else self.forward_at(x, self.predict_resolution(x))

    @torch.no_grad()
    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choose a candidate for each image.

        Args:
            x: Normalized images, (B, C, S, S).

        Returns:
            Indices into ``resolutions``, (B,) int64; where it stopped in a cascade, all 0 in the pretrain stage, -1
            where a predictor's scores are not finite.

        Raises:
            ValueError: If x is not a batch of square images.
        """
        check_images(x)
        if self._climbs:
            return self._climb(x)[1]
        if self._predictor is None:
            return torch.zeros(len(x), dtype=torch.int64)
        return chosen(self._predictor(resize(x, self.manifest['predictor_size'])))

    @torch.no_grad()
    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Classify at given resolutions, without the router.

        Args:
            x: Normalized images, (B, C, S, S).
            choice: Index into ``resolutions`` for all images, or one for each, (B,) integers.

        Returns:
            Logits, (B, num_classes).

        Raises:
            ValueError: If x is not a batch of square images, or a choice is not a candidate.
        """
        check_images(x)
        choices = torch.full((len(x),), choice) if isinstance(choice, int) else check_choices(choice, x)
        logits: torch.Tensor = route(x, choices, len(self.resolutions), self._run)[0]
        return logits

    @staticmethod
    def _load(path: str | os.PathLike[str], entry: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        content = read_file(path, entry)
        try:
            return load_program(content)
        except Exception as error:  # of many types
            raise InvalidExportError(
                f'{os.path.join(path, entry["name"])}: PyTorch {torch.__version__} cannot load it'
                f' ({first_line(error)}); install a newer one, or export the model again') from error

    @torch.no_grad()
    def _climb(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, choice, _ = climb(x, self.manifest['thresholds'], self._run)
        return logits, choice

    def _run(self, index: int, x: torch.Tensor) -> torch.Tensor:
        return self._branches[index](resize(x, self.resolutions[index]))


def load_program(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load a program of ``torch.export``.

    Args:
        content: Of its file.

    Returns:
        A function from (B, C, r, r) to (B, outputs).
    """
    return torch.export.load(io.BytesIO(content)).module()
