"""The folder of results: a JSON file for each row and seed, good as long as its row's options stay the same."""

from pathlib import Path

from .configuration import Configuration, UserError
from .files import read_json


def result_path(results: Path, configuration: Configuration, name: str, seed: int) -> Path:
    """Where the result of a row and seed lies."""
    return results / configuration.name / f'{name}-seed{seed}.json'


def has_result(results: Path, configuration: Configuration, name: str, seed: int) -> bool:
    """Whether a row was measured with the options that it has now.

    Raises:
        UserError: If it was measured with others.
    """
    path = result_path(results, configuration, name, seed)
    if not path.exists():
        return False
    if read_json(path).get('fingerprint') != configuration.result_fingerprint(name, seed):
        raise UserError(
            f'{path}: measured with other options than those of row {name!r} in {configuration.name}.yaml now; delete'
            ' this file to measure it again, or undo the change')
    return True
