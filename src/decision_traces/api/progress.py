"""A progress bar that suits notebooks and terminals (tqdm)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tqdm.auto import tqdm

_PATIENCE: Final = 1.0
"""Seconds that pass before an analysis shows a bar."""


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs, where it takes long; yield the function to call with (done, of how many)."""
    with tqdm(desc=label, delay=_PATIENCE, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


class TqdmBar:
    """Draws an extraction as a bar over its tokens."""

    def __init__(self) -> None:
        self._examples = self._n_examples = 0
        self._bar: tqdm[None] | None = None

    def say(self, message: str) -> None:
        """Print one line."""
        tqdm.write(message)

    def start(self, n_examples: int, n_tokens: int) -> None:
        """Show the bar."""
        self._examples, self._n_examples = 0, n_examples
        self._bar = tqdm(total=n_tokens, unit="token", unit_scale=True, desc=f"0 of {n_examples} examples")

    def advance(self, n_examples: int, n_tokens: int) -> None:
        """Move the bar on."""
        self._examples += n_examples
        if self._bar is not None:
            self._bar.set_description(f"{self._examples} of {self._n_examples} examples", refresh=False)
            self._bar.update(n_tokens)

    def written(self, n_bytes: int) -> None:
        """Show how much is on disk."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{n_bytes / 1e6:,.0f} MB written", refresh=False)

    def finish(self) -> None:
        """Close the bar, and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
