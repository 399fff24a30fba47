"""Fuzz a parser: ``python tests/fuzz/run.py export_manifest CORPUS -max_total_time=1200`` (pip install atheris first).

CORPUS is a folder for the inputs that reach something new; the options are those of libFuzzer. What it finds it writes
to a file ``found-...`` (``timeout-...`` after ten seconds): such an input belongs into ``FOUND`` of ``test_fuzz.py``.
"""

import ast
import importlib
import random
import re
import resource
import sys
import zlib
from pathlib import Path

import atheris

ROOM = 256 * 2 ** 20
"""Bytes that an input may take, and the fuzzer for what it remembers."""


def main() -> None:
    """Fuzz until the time is over or something is found."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, str(Path(__file__).parent))
    modules = re.findall(r'^MODULES = (\[.*\])$', (Path(__file__).parent / f'{name}.py').read_text(), re.MULTILINE)
    with atheris.instrument_imports(include=ast.literal_eval(modules[0])):
        target = importlib.import_module(name)
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.SEEDS):
        (corpus / f'seed-{i}').write_bytes(seed)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        base = rng.choice((data, rng.choice(target.SEEDS)))  # most of what is kept is refused early
        made = target.mutate(base, rng) if rng.random() < 0.5 else None
        return made[:max_size] if made else atheris.Mutate(data, max_size)

    with open('/proc/self/status') as status:
        used = int(re.search(r'VmData:\s+(\d+) kB', status.read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, resource.RLIM_INFINITY))
    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:  # written at once: what libFuzzer does at the end of the process may come too late
            Path(f'found-{zlib.crc32(data):08x}').write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *sys.argv[2:], '-timeout=10', '-max_len=4096'], check, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
