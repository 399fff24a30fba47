"""``timm-drnet run``: a script of timm's, with the models of this package registered."""

import argparse
import runpy
import sys
import traceback
import warnings
from pathlib import Path

from .output import UserError


def run(args: argparse.Namespace) -> int:
    """Run the script as ``python SCRIPT`` would, and return its exit code."""
    script = Path(args.script)
    if not script.is_file():
        raise UserError(
            f"{args.script}: no such script; give the path of one, such as train.py in a clone of timm's repository")
    argv, path = sys.argv, sys.path[:]
    sys.argv = [args.script, *args.arguments]
    sys.path.insert(0, str(script.resolve().parent))  # as Python does: scripts import their neighbours
    _ignore_deprecations()
    try:
        runpy.run_path(args.script, run_name='__main__')
    except SystemExit as stop:
        return _exit_code(stop)
    except Exception as error:
        # A mistake of the script's, or in its arguments: told as Python does it, from the script's first line on.
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename != args.script:
            frame = frame.tb_next
        traceback.print_exception(error.with_traceback(frame))
        return 1
    finally:
        sys.argv, sys.path[:] = argv, path
    return 0


def _ignore_deprecations() -> None:
    """Keep what only the authors of timm and PyTorch can mend off the terminal."""
    if sys.warnoptions:  # somebody asked for warnings
        return
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings('ignore', category=category, module=r'(__main__|timm|torch|torchvision)\b')


def _exit_code(stop: SystemExit) -> int:
    """What a process would end with; what is no number is told first."""
    if stop.code is None or isinstance(stop.code, int):
        return int(stop.code or 0)
    print(stop.code, file=sys.stderr)
    return 1
