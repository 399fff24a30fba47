"""The card that the tests of this folder run on, and how often the host waits for it.

`DRNET_TEST_DEVICE=cpu pytest -n 0 -m cuda tests/cuda` tries the tests themselves on the processor.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / 'examples'))

from on_cuda import host_waits

DEVICE = torch.device(os.environ.get('DRNET_TEST_DEVICE', 'cuda'))

needs_card = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == 'cuda' and not torch.cuda.is_available(), reason='there is no CUDA card here'),
]


def waits_of(run, waits):
    """Where the host waits for the card within a call: places in the code, or on the processor operators.

    Args:
        run: Called twice, first to load kernels.
        waits: The fixture, for the processor.
    """
    run()
    if DEVICE.type == 'cpu':
        waits.seen.clear()
        with waits:
            run()
        return [name for name in waits.seen.elements() if name != '_to_copy']  # there, autocast's
    return host_waits(run)
