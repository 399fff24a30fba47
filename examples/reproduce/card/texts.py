"""What the page of results says of each run beside its figures; the words are in ``texts.yaml``."""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Text:
    """A run's words."""

    title: str
    setting: tuple[str, ...]
    """How it was done."""
    findings: tuple[str, ...]
    """What was looked into."""


def read_texts() -> dict[str, Text]:
    """The words for all runs, by the name of the JSON file without its suffix."""
    read = yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8'))
    return {name: Text(one['title'], tuple(one['setting']), tuple(one['findings'])) for name, one in read.items()}
