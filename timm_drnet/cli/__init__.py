"""The ``timm-drnet`` command: one module per task, each with a parser and a function that runs it."""

import argparse
from collections.abc import Sequence

from ..cli import (
    analyze,
    bench,
    budget,
    calibrate,
    classify,
    convert_mindspore,
    export,
    flops,
    last_checkpoint,
    predict,
    publish,
    validate,
)
from ..data.pixels import ignore_warnings
from ..version import __version__
from .common import UserError, tell

_COMMANDS = (
    predict, classify, validate, analyze, flops, budget, calibrate, bench, export, publish, convert_mindspore,
    last_checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        0, or 1 where the command did its work but part of the input was unusable, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(prog='timm-drnet', description='Dynamic input resolution for CNNs.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for command in _COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    args = parser.parse_args(argv)
    ignore_warnings()
    try:
        return int(args.run(args))
    except UserError as error:
        tell(args.command, str(error))
        return 2
    except KeyboardInterrupt:
        return 130
