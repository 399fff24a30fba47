"""The examples in docstrings run as they stand, on the package that is installed."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import timm_drnet

MODULES = [
    module.name for module in pkgutil.walk_packages(timm_drnet.__path__, 'timm_drnet.')
    if '>>>' in Path(module.module_finder.find_spec(module.name).origin).read_text()
]


@pytest.mark.parametrize('name', MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted


def test_the_public_surface_has_examples():
    assert {'timm_drnet.model', 'timm_drnet.hub.zoo', 'timm_drnet.adaptation.adapt', 'timm_drnet.cost.flops'} <= set(
        MODULES)
