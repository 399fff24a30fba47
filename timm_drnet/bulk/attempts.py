"""Attempts: a limit to how often work is given again to a worker that died over it, and what made workers fail.

Ray gives it again without end, which is right for workers that die by chance, and wrong for an image on which each of
them dies. And of an error in a worker, Ray tells where it was raised rather than what it says.
"""

from collections import Counter

_MOST = 5


class Attempts:
    """Counts how often each piece of work was begun; one for all workers, as an actor of Ray's."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._failure: str | None = None

    def begin(self, work: str, images: str) -> None:
        """Note that a worker begins a piece of work.

        Args:
            work: What identifies it.
            images: How to name it to the user.

        Raises:
            RuntimeError: If that happened too often.
        """
        if self._begun[work] == _MOST:
            self.fail(
                f'{_MOST} workers died while they were at the images {images}: use fewer workers if memory is short, or'
                ' find the image that does it and remove it')
            raise RuntimeError(self._failure)
        self._begun[work] += 1

    def fail(self, reason: str) -> None:
        """Note why the run will end; the first reason counts."""
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        """Why the run ends, None if no worker said so."""
        return self._failure

    def repeated(self) -> int:
        """How often work was begun again: one worker had died over it each time."""
        return self._begun.total() - len(self._begun)
