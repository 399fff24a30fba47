"""The card that the tests of this folder run on, and how often the host waits for it.

`DRNET_TEST_DEVICE=cpu pytest -n 0 -m cuda tests/cuda` tries the tests themselves on the processor.
"""

import os
import warnings

import pytest
import torch

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
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return [f'{w.filename}:{w.lineno}' for w in caught if 'called a synchronizing CUDA operation' in str(w.message)]
