"""``timm-drnet last-checkpoint`` in a shell's "$(...)"; what it finds is tested with `timm_drnet.train.resume`."""

import os
from pathlib import Path

from timm_drnet.cli import last_checkpoint, main
from timm_drnet.train.resume import Checkpoint


def test_path_is_the_very_name_for_a_shell_and_escaped_for_a_terminal(tmp_path, monkeypatch, capfdbinary):
    found = Path('caf\udce9\x1b/last.pth.tar')
    monkeypatch.setattr(last_checkpoint, 'last_checkpoint', lambda folder: Checkpoint(found, 3))
    assert main(['last-checkpoint', str(tmp_path)]) == 0
    assert capfdbinary.readouterr().out == os.fsencode(found) + b'\n'
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    assert main(['last-checkpoint', str(tmp_path)]) == 0
    assert capfdbinary.readouterr().out == rb'caf\udce9\x1b/last.pth.tar' + b'\n'
