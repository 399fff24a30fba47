"""Fine-tuning on photographs: what docs/train.md recommends, and what it is compared with.

    python train_on_photographs.py prepare caltech101 photos work
    python reproduce.py run caltech101.yaml --train-script train.py --data photos --work work
    python train_on_photographs.py measure photos work
    python train_on_photographs.py report

What is trained or measured is skipped, so that the same commands go on after an interruption.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.configuration import load_configuration

HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        0; 2 for bad input.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    prepare = commands.add_parser('prepare', help='divide the photographs, by links, and write the plain weights')
    prepare.add_argument('source', metavar='FOLDER', type=Path, help='with train and val, a folder for each class')
    measure = commands.add_parser('measure', help='measure what is trained, and not measured yet')
    for command in (prepare, measure):
        command.add_argument('data', metavar='DATA', type=Path, help='for train, held and val')
        command.add_argument('work', metavar='WORK', type=Path, help='of reproduce.py')
    report = commands.add_parser('report', help='write docs/caltech101.md')
    measure.add_argument('--configuration', metavar='FILE', type=Path, default=HERE / 'caltech101.yaml')
    for command in (measure, report):
        command.add_argument('--results', metavar='DIR', type=Path, default=HERE / 'results' / 'caltech101')
    args = parser.parse_args(argv)
    if args.command == 'prepare':
        from photographs.preparing import prepare as divide

        if not (args.source / 'train').is_dir() or not (args.source / 'val').is_dir():
            parser.error(f'{args.source}: no folders train and val in it')
        print(divide(args.source, args.data, args.work))
    elif args.command == 'measure':
        _measure(args.configuration, args.data, args.work, args.results)
    else:
        from photographs.page import PAGE, write_page

        if not any(args.results.glob('cascade-seed*.json')):
            parser.error(f'--results {args.results}: no results; measure first')
        write_page(args.results)
        print(f'wrote {PAGE}')
    return 0


def _measure(file: Path, data: Path, work: Path, results: Path) -> None:
    from photographs.measuring import measure, write_result
    from reproduction.commands import Places
    from reproduction.trainings import Training

    configuration = load_configuration(file)
    places = Places(HERE, data, work)
    for seed in configuration.seeds:
        for name in configuration.rows:
            training = Training(configuration, name, seed, places)
            if training.finished and not (results / f'{name}-seed{seed}.json').exists():
                print(write_result(measure(configuration, name, seed, training.folder, data), results), flush=True)


if __name__ == '__main__':
    sys.exit(main())
