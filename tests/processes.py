"""Processes that start in no time, as one process imports the packages for all and then forks.

A test that runs something in another process takes its `CONTEXT`, and `on_ranks` for processes that train together.
`processes_below` finds those that something else has started, and `is_alive` tells what became of them.
"""

import datetime
import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['timm_drnet', 'timm.optim', 'timm.scheduler'])


def on_ranks(function, world_size, folder, *args):
    """Call ``function(rank, world_size, *args)`` in processes of one group over gloo, and return their results."""
    folder.mkdir(exist_ok=True)
    torch.multiprocessing.start_processes(
        _run, args=(function, world_size, folder, args), nprocs=world_size, start_method='forkserver')
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(world_size)]


def _run(rank, function, world_size, folder, args):
    torch.set_num_threads(1)
    # A rank that waits for one that does not come is an error after a minute.
    dist.init_process_group(
        'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=world_size,
        timeout=datetime.timedelta(seconds=60))
    try:
        torch.save(function(rank, world_size, *args), folder / f'{rank}.pt')
    finally:
        dist.destroy_process_group()


def processes_below(pid):
    """All processes that live and that a process has started, directly or not."""
    parents = {}
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            state, parent = _state(entry.name)
            if state not in 'ZX':
                parents[int(entry.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_alive(pid):
    """Whether a process has not ended; one that nobody has waited for has."""
    return _state(pid)[0] not in 'ZX'


def _state(pid):
    """The state of a process, X if there is none, and its parent."""
    try:
        state, parent = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[:2]
    except OSError:
        return 'X', '0'
    return state, parent
