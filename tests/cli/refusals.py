"""How commands refuse bad input."""

import re


def refused(result, match):
    """Check that a command, of which exit code, stdout and stderr are given, told one line and did nothing."""
    code, out, err = result
    assert (code, out) == (2, '')
    assert re.fullmatch(f'timm-drnet [a-z]+: .*{match}.*\n', err), err
