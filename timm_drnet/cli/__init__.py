"""The ``timm-drnet`` command: `parsers` describes its commands, and the module of a command's name runs it."""

import importlib
from collections.abc import Callable, Sequence

from ..data.output_folder import OutputError
from .output import UserError, tell
from .parsers import build_parser
from .process import signals_as_exits, standard_streams


def main(argv: Sequence[str] | None = None, prepare: Callable[[], object] = lambda: None) -> int:
    """Run one command.

    Args:
        argv: Arguments; those of the process by default.
        prepare: Called before the command is run, but not for its help or a usage error.

    Returns:
        0, or 1 where the command did its work but part of the input was unusable, or 2 for bad input and for output
        that could not be written; 128 and its number for a signal that ended it, a closed pipe (SIGPIPE) included.
    """
    with standard_streams() as out, signals_as_exits():
        code = _run(argv, prepare)
        out.flush()
        if out.error is None or code > 1:
            return code
        if isinstance(out.error, BrokenPipeError):
            return 141
        tell('', f'cannot write to standard output: {out.error.strerror}')
        return 2


def _run(argv: Sequence[str] | None, prepare: Callable[[], object]) -> int:
    command = ''
    try:
        args = build_parser().parse_args(argv)
        command = args.command
        prepare()
        # What takes seconds to import, PyTorch and timm, is imported here, and not for --help.
        module = importlib.import_module(f'.{command.replace("-", "_")}', __package__)
        from ..data.pixels import ignore_warnings

        ignore_warnings()
        return int(module.run(args))
    except (UserError, OutputError) as error:
        tell(command, str(error))
        return 2
    except OSError as error:
        where = '' if error.filename is None else f'{error.filename}: '
        tell(command, f'{where}{error.strerror or error}')
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
