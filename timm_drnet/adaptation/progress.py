"""The progress of an adaptation, in a file: what was interrupted goes on where it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data.output_folder import staged_file


class Progress:
    """What an adaptation has done so far.

    Args:
        path: The file; None to keep nothing.
        arguments: All that the result depends on: a file that others wrote is refused.

    Raises:
        ValueError: If the file is that of another adaptation, or damaged.
    """

    def __init__(self, path: Path | None, arguments: Mapping[str, Any]) -> None:
        self._path = path
        self._kept: dict[str, Any] = {'arguments': dict(arguments)}
        if path is None or not path.exists():
            return
        try:
            found = torch.load(path, map_location='cpu', weights_only=True)  # it may go on without the card
            theirs = found['arguments']
        except Exception as error:  # a damaged pickle raises almost anything
            raise ValueError(f'{path}: not the progress of an adaptation; remove it to start anew.') from error
        different = [name for name, value in arguments.items() if theirs.get(name) != value]
        if different:
            name = different[0]
            raise ValueError(
                f'{path}: the progress of an adaptation with another {name}, {theirs.get(name)!r} instead of'
                f' {arguments[name]!r}; remove the file to start anew.')
        self._kept = found

    def get(self, key: str) -> Any:
        """What is known under a name, None if nothing is."""
        return self._kept.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Write something down at once; None forgets it."""
        self._kept[key] = value
        if self._path is not None:
            with staged_file(self._path) as file, file.open('wb') as stream:
                torch.save(self._kept, stream)
