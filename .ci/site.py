"""Links of what is shown elsewhere than in a clone; pyproject.toml alone says where the project lives.

As hooks of mkdocs: files outside docs/ are shown in the repository. As a script, for a release: the README's links and
pictures, which the package index shows without the repository, get whole addresses.

    python .ci/site.py
"""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']


def on_config(config: Any) -> Any:
    """Take the addresses from the package's metadata."""
    config.repo_url, config.site_url = URLS['Repository'], URLS['Documentation']
    config.repo_name, config.edit_uri = config.site_name, None
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links that leave docs/ lead to the repository, and keep numbers in tables in one line."""
    def unbroken(row: re.Match[str]) -> str:
        return re.sub(' (?=[±%])|(?<=±) ', '\N{NO-BREAK SPACE}', row[0])

    return to_repository(re.sub(r'^\|.*$', unbroken, markdown, flags=re.MULTILINE), r'\.\./')


def to_repository(markdown: str, relative: str) -> str:
    """Give links whole addresses.

    Args:
        markdown: A page.
        relative: Pattern of what is before the path of a file in the links to change.
    """
    def link(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        kind = 'raw' if picture else 'tree' if (ROOT / path).is_dir() else 'blob'
        return f'{picture}[{text}]({URLS["Repository"]}/{kind}/main/{path}'

    return re.sub(rf'(!?)\[([^]]*)\]\({relative}([^)#:\s]+)(?=[)#])', link, markdown)


if __name__ == '__main__':
    readme = ROOT / 'README.md'
    readme.write_text(to_repository(readme.read_text(encoding='utf-8'), ''), encoding='utf-8')
