"""Hooks of mkdocs: pyproject.toml alone says where the project lives, which is where files outside docs/ are shown."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Take the addresses from the package's metadata."""
    urls = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']
    config.repo_url, config.site_url = urls['Repository'], urls['Documentation']
    config.repo_name, config.edit_uri = config.site_name, None
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links that leave docs/, which work in a clone and on the repository's pages, lead to the repository."""
    def link(match: re.Match[str]) -> str:
        path = match[1]
        assert (ROOT / path).exists(), f'{page.file.src_uri} links to {path}, which is not there'
        kind = 'tree' if (ROOT / path).is_dir() else 'blob'
        return f']({config.repo_url}/{kind}/main/{path}'

    return re.sub(r'\]\(\.\./([^)#\s]+)', link, markdown)
