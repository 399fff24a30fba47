"""The paper's Tables 1, 2, 4 and 5, and what they claim."""

from dataclasses import dataclass

LARGEST = 4.0892
"""C_1 of the paper's ResNet-50 at 224 px in GFLOPs, which it rounds to 4.1."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table."""

    label: str
    """What was measured."""
    row: str
    """Our row."""
    gflops: float
    """The paper's."""
    top1: float
    """The paper's, in per cent."""
    use: str = 'dynamic'
    """How our row's model is used: ``dynamic``, as it is; ``shares``, with a router that draws lots in the predictor's
    shares; ``uniform``, with one that takes each resolution equally often; ``dial-N``, by the dial at the N-th of the
    row's averages."""

    @property
    def fraction(self) -> float:
        """The paper's FLOPs as a fraction of its backbone's at the largest size."""
        return self.gflops / LARGEST


@dataclass(frozen=True)
class Claim:
    """That a row lies above another."""

    text: str
    """In words."""
    quantity: str
    """``top1`` or ``fraction``, of FLOPs."""
    above: tuple[str, str]
    """Our row, and how it is used."""
    below: tuple[str, str]
    """The same."""
    paper: float | None
    """The paper's difference, in points of per cent; None if it did not measure this."""


@dataclass(frozen=True)
class Table:
    """One table of the paper, as far as it is about the method itself."""

    number: int
    """The paper's."""
    title: str
    """What it is about, and on which data the paper measured it."""
    rows: tuple[PaperRow, ...]
    """Its rows."""
    claims: tuple[Claim, ...]
    """What the paper concludes from it."""
    remark: str = ''
    """Where our table differs."""


def _cost(one: float, other: float) -> float:
    return 100 * (one - other) / LARGEST


def _claim(text: str, quantity: str, above: str, below: str, paper: float | None) -> Claim:
    """A claim about rows, each named ROW or ROW/USE."""
    parts = [(row, use or 'dynamic') for row, _, use in (name.partition('/') for name in (above, below))]
    return Claim(text, quantity, parts[0], parts[1], paper)


TABLES = (
    Table(
        1, 'the method and its norms (the paper: ResNet-50, ImageNet-100)',
        (
            PaperRow('backbone alone, largest size', 'backbone', 4.1, 78.5),
            PaperRow('DRNet without FLOPs loss', 'drnet', 3.4, 82.5),
            PaperRow('DRNet, eta = 0.2, alpha = 2.5', 'alpha-2.5', 2.8, 81.4),
            PaperRow('the same with shared norms', 'alpha-2.5-shared', 2.9, 80.3),
        ),
        (
            _claim('A DRNet is more accurate than its backbone.', 'top1', 'drnet', 'backbone', 82.5 - 78.5),
            _claim('It costs less.', 'fraction', 'backbone', 'drnet', _cost(4.1, 3.4)),
            _claim('With a FLOPs loss it is still more accurate.', 'top1', 'alpha-2.5', 'backbone', 81.4 - 78.5),
            _claim('It then costs less than without one.', 'fraction', 'drnet', 'alpha-2.5', _cost(3.4, 2.8)),
            _claim(
                'Norms for each resolution gain accuracy over shared ones.', 'top1', 'alpha-2.5', 'alpha-2.5-shared',
                81.4 - 80.3),
        ),
    ),
    Table(
        2, 'the FLOPs loss (the paper: ResNet-50, ImageNet-100)',
        (
            PaperRow('eta = 0.2, alpha = 2.0', 'alpha-2.0', 2.3, 80.6),
            PaperRow('eta = 0.2, alpha = 2.5', 'alpha-2.5', 2.8, 81.4),
            PaperRow('eta = 0.2, alpha = 3.0', 'alpha-3.0', 3.3, 82.3),
            PaperRow('eta = 0.2, alpha = 3.5', 'alpha-3.5', 3.5, 82.6),
            PaperRow('eta = 0.1, alpha = 3.0', 'eta-0.1', 3.3, 82.1),
            PaperRow('eta = 0.5, alpha = 3.0', 'eta-0.5', 3.1, 81.9),
            PaperRow('eta = 1, alpha = 3.0', 'eta-1.0', 3.1, 81.5),
        ),
        (
            _claim('A larger alpha costs more (2.0, 3.5).', 'fraction', 'alpha-3.5', 'alpha-2.0', _cost(3.5, 2.3)),
            _claim('A larger alpha is more accurate (2.0, 3.5).', 'top1', 'alpha-3.5', 'alpha-2.0', 82.6 - 80.6),
            _claim('A larger eta costs less (0.1, 1).', 'fraction', 'eta-0.1', 'eta-1.0', _cost(3.3, 3.1)),
            _claim('A larger eta is less accurate (0.1, 1).', 'top1', 'eta-0.1', 'eta-1.0', 82.1 - 81.5),
            _claim('At alpha = 2.0 it still beats the backbone.', 'top1', 'alpha-2.0', 'backbone', 80.6 - 78.5),
        ),
        "alpha is given in the GFLOPs of the paper; ours is the same fraction of our backbone's largest cost.",
    ),
    Table(
        4, 'against a smaller size for all images (the paper: ResNet-50, ImageNet-1K)',
        (
            PaperRow('backbone alone, largest size', 'backbone', 4.1, 76.1),
            PaperRow('backbone alone, smaller size (paper: 192 px)', 'static', 3.0, 74.3),
            PaperRow('DRNet without FLOPs loss', 'drnet', 3.7, 77.5),
            PaperRow('DRNet, alpha = 2.0', 'alpha-2.0', 2.3, 75.3),
        ),
        (
            _claim(
                'The DRNet is more accurate than the smaller size (alpha = 2.0).', 'top1', 'alpha-2.0', 'static',
                75.3 - 74.3),
            _claim('It costs less (alpha = 2.0).', 'fraction', 'static', 'alpha-2.0', _cost(3.0, 2.3)),
        ),
        "The table's other rows are other methods, which are not measured here.",
    ),
    Table(
        5, 'against lots (the paper: ResNet-50, ImageNet-1K)',
        (
            PaperRow('lots, each resolution equally often', 'drnet', 2.6, 74.65, 'uniform'),
            PaperRow('DRNet without FLOPs loss', 'drnet', 3.7, 77.5),
        ),
        (
            _claim(
                'The predictor is better than lots.', 'top1', 'drnet', 'drnet/uniform', 77.5 - 74.65),
            _claim(
                'Better than lots at the same shares (no FLOPs loss).', 'top1', 'drnet', 'drnet/shares', None),
            _claim(
                'Better than lots at the same shares (alpha = 2.5).', 'top1', 'alpha-2.5', 'alpha-2.5/shares', None),
            _claim(
                'Better than lots at the same shares (alpha = 2.0).', 'top1', 'alpha-2.0', 'alpha-2.0/shares', None),
        ),
        "The paper's lots cost less than its DRNet, so its comparison does not tell a good predictor from a larger"
        ' average size. The claims below it hold both to the same shares. Neither router of lots is charged for a'
        ' predictor; equally often is computed as the average of the model held at each resolution.',
    ),
)
