"""Measure the paper's claims again: train with timm's train.py, measure with timm-drnet, report.

    python reproduce.py run tiny-imagenet-100.yaml --train-script train.py --data DIR --work DIR
    python reproduce.py report

A run may be stopped at any moment; the same command goes on where it was.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reproduction.configuration import UserError, load_configuration

HERE = Path(__file__).resolve().parent
CONFIGURATIONS = ('tiny-imagenet-100.yaml', 'resnet50.yaml')  # in the order of the report


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        0, 1 where a training or measurement failed, 2 for bad input, 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        if args.command == 'report':
            _report(args)
            return 0
        return _run(args)
    except UserError as error:
        print(f'reproduce.py {args.command}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on where this one was', file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='reproduce.py', description="Measure the paper's claims again.")
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    run = commands.add_parser('run', help='train and measure; stopped at any moment, the same command goes on')
    add = run.add_argument
    add('configuration', metavar='CONFIG', type=Path, help='configuration file')
    add('--train-script', metavar='FILE', type=Path, required=True, help="timm's train.py, which its wheel lacks")
    add('--data', metavar='DIR', type=Path, required=True, help='the data set, as train.py takes it')
    add('--work', metavar='DIR', type=Path, required=True, help='for checkpoints and logs')
    add('--results', metavar='DIR', type=Path, default=HERE / 'results', help='for the results (beside this file)')
    add('--rows', metavar='NAME', nargs='+', help='only these, and what they start from')
    add('--seeds', metavar='N', nargs='+', type=int, help='only these')
    add('--dry-run', action='store_true', help='show what is done and to do, with every command, and stop')
    report = commands.add_parser('report', help='write the tables and figures from the results')
    add = report.add_argument
    add('--results', metavar='DIR', type=Path, default=HERE / 'results', help='the results (beside this file)')
    add('--output', metavar='FILE', type=Path, default=HERE.parents[1] / 'docs' / 'results.md',
        help='the page to write; figures go into a folder of its name (docs/results.md)')
    return parser


def _run(args: argparse.Namespace) -> int:
    configuration = load_configuration(args.configuration)
    if not args.train_script.is_file():
        raise UserError(
            f"--train-script {args.train_script}: no such file; get train.py from timm's repository, in the version"
            ' nearest to the installed timm')
    if not args.data.is_dir():
        raise UserError(f'--data {args.data}: no such folder')
    # These import PyTorch, which takes seconds.
    from reproduction.commands import Places
    from reproduction.plan import make_plan, run_plan, select, show_plan
    from reproduction.trainings import TrainingFailed

    places = Places(args.train_script.resolve(), args.data.resolve(), args.work.resolve())
    rows = select(args.rows, list(configuration.rows), '--rows')
    seeds = select(args.seeds, list(configuration.seeds), '--seeds')
    if args.rows is None:
        rows = [name for name in rows if configuration.rows[name].measured] or rows  # or it is for training alone
    if args.dry_run:
        show_plan(configuration, make_plan(configuration, places, args.results, rows, seeds))
        return 0
    signal.signal(signal.SIGTERM, _stop)
    try:
        run_plan(configuration, places, args.results, rows, seeds)
    except TrainingFailed as error:
        print(f'reproduce.py run: {error}', file=sys.stderr)
        return 1
    return 0


def _report(args: argparse.Namespace) -> None:
    from reproduction.report import write_report

    configurations = [load_configuration(HERE / name) for name in CONFIGURATIONS]
    for path in write_report(configurations, args.results, args.output):
        print(f'wrote {path}')


def _stop(number: int, frame: Any) -> None:
    """End as from the keyboard, so that train.py is ended, too."""
    raise KeyboardInterrupt


if __name__ == '__main__':
    sys.exit(main())
