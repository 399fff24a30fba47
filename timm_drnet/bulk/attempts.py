"""Attempts: a limit to how often work is given again to a worker that died over it.

Ray gives it again without end, which is right for workers that die by chance, and wrong for an image on which each of
them dies.
"""

from collections import Counter

_MOST = 5


class Attempts:
    """Counts how often each piece of work was begun; one for all workers, as an actor of Ray's."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, work: str, images: str) -> None:
        """Note that a worker begins a piece of work.

        Args:
            work: What identifies it.
            images: How to name it to the user.

        Raises:
            RuntimeError: If that happened too often.
        """
        if self._begun[work] == _MOST:
            raise RuntimeError(
                f'{_MOST} workers died while they were at the images {images}: use fewer workers if memory is short, or'
                ' find the image that does it and remove it')
        self._begun[work] += 1
