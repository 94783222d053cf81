"""How an analysis reports its progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int, int], None]
"""Called with (steps done, of how many)."""
Counting = Callable[[str], AbstractContextManager[Progress | None]]
"""What is counted → a context that gives the function to tell how far it is."""


def uncounted(_what: str) -> AbstractContextManager[None]:
    """Return a context that counts nothing."""
    return nullcontext()
