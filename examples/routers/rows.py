"""The rows of a result, by router."""

from typing import Any


def routed(result: dict[str, Any], start: str) -> list[dict[str, Any]]:
    """The rows of a router that reached their target, by target; of several, those set on the most photographs.

    Args:
        result: What `compare` measured.
        start: How the router's name begins.

    Returns:
        The rows, but for those set on photographs of other classes.
    """
    found: dict[float, dict[str, Any]] = {}
    for row in result['rows']:
        if row['router'].startswith(start) and not row['router'].endswith('classes') and 'error' not in row:
            best = found.setdefault(row['target'], row)
            found[row['target']] = max(best, row, key=lambda one: int(one['images']))
    return [found[target] for target in sorted(found)]
