"""What the README shows runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_python_examples_run_in_order():
    blocks = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
    assert len(blocks) >= 3
    exec(compile('\n'.join(blocks), 'README.md', 'exec'), {})


def test_linked_files_exist():
    for target in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (ROOT / target).exists(), target
