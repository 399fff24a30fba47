"""The console script, beside the package: importing that takes seconds, which its --help can do without."""

import importlib.util
import sys


def main() -> int:
    """Run ``timm-drnet``: the package is there from the start, but its ``__init__`` runs when a command does.

    Returns:
        The exit code, as `timm_drnet.cli.main` has it.
    """
    spec = importlib.util.find_spec('timm_drnet')
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules['timm_drnet'] = package

    from timm_drnet.cli import main

    return main(prepare=lambda: loader.exec_module(package))


if __name__ == '__main__':
    sys.exit(main())
