"""How processors are dealt out, what ends work that kills its workers, and what Ray may say."""

import os
import re
import signal
from pathlib import Path

import pytest

from timm_drnet.bulk.attempts import Attempts
from timm_drnet.bulk.cluster import Plan, _without_note_of_log_level, plan_workers


@pytest.mark.parametrize(('arguments', 'expected'), [
    ({'cpus': 2, 'gpus': 0}, Plan(workers=2, decoders=0, threads=1, num_cpus=1, num_gpus=0)),
    ({'cpus': 16, 'gpus': 0, 'workers': 3}, Plan(3, 0, 5, 5, 0)),
    ({'cpus': 2, 'gpus': 0, 'workers': 4}, Plan(4, 0, 1, 0.5, 0)),
    ({'cpus': 2, 'gpus': 0, 'workers': 3}, Plan(3, 0, 1, 0.6666, 0)),
    ({'cpus': 2, 'gpus': 0, 'decoders': 1}, Plan(1, 1, 1, 1, 0)),
    ({'cpus': 16, 'gpus': 2}, Plan(2, 14, 1, 1, 1)),
    ({'cpus': 16, 'gpus': 1, 'num_gpus': 0.5}, Plan(2, 14, 1, 1, 0.5)),
    ({'cpus': 16, 'gpus': 2, 'num_gpus': 0}, Plan(16, 0, 1, 1, 0)),
    ({'cpus': 16, 'gpus': 2, 'decoders': 0}, Plan(2, 0, 8, 8, 1)),
])
def test_plan(arguments, expected):
    plan = plan_workers(**arguments)
    assert plan == expected
    assert plan.workers * plan.num_cpus + plan.decoders <= arguments['cpus']


@pytest.mark.parametrize(('arguments', 'told'), [
    ({'cpus': 2, 'gpus': 0, 'num_gpus': 1}, 'Invalid num_gpus 1: the cluster has 0'),
    ({'cpus': 2, 'gpus': 1, 'workers': 2}, 'Invalid workers 2: .* they need 2, and the cluster has 1'),
    ({'cpus': 2, 'gpus': 0, 'decoders': 2}, 'Invalid decoders 2: the workers need some of the 2 cores'),
])
def test_what_would_wait_for_ever_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        plan_workers(**arguments)


def test_work_that_kills_its_workers_is_given_up():
    attempts = Attempts()
    for _ in range(5):
        attempts.begin('classify 64', '64 to 127 of the inputs')
        attempts.begin('decode 64', '64 to 127 of the inputs')
    with pytest.raises(RuntimeError, match='5 workers died .* images 64 to 127 of the inputs'):
        attempts.begin('classify 64', '64 to 127 of the inputs')
    attempts.begin('classify 128', '128 to 191 of the inputs')
    assert attempts.repeated() == 8
    attempts.fail('something that followed from it')
    assert '5 workers died' in attempts.failure()


def test_note_of_the_log_level_is_held_back_and_nothing_else(capfd):
    with _without_note_of_log_level():
        os.write(2, b'one\n[2026-11-26 13:33:52,143 I 15241 15241] logging.cc:303: Set ray log level from environ')
        os.write(2, b'ment variable RAY_BACKEND_LOG_LEVEL to 3\ntwo\n')
    os.write(2, b'three\n')
    assert capfd.readouterr() == ('', 'one\ntwo\nthree\n')


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_sigterm_is_left_alone(ray_here):
    caught = int(re.search(r'SigCgt:\s*(\w+)', Path('/proc/self/status').read_text())[1], 16)
    assert not caught >> (signal.SIGTERM - 1) & 1
