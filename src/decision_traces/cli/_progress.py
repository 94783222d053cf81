"""Drawing the progress of an extraction: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from decision_traces.extract.progress import Progress as ProgressSink
from decision_traces.extract.progress import Silent

_SECONDS_BETWEEN_LINES: Final = 5.0


def make_progress(console: Console, *, quiet: bool) -> ProgressSink:
    """Return what suits the place the output goes to."""
    if quiet:
        return Silent()
    return Bar(console) if console.is_terminal else Lines(console)


class _Counts:
    """Examples, tokens and bytes so far, of how many."""

    def __init__(self, n_examples: int = 0, n_tokens: int = 1) -> None:
        self.n_examples, self.n_tokens = n_examples, max(1, n_tokens)
        self.examples = self.tokens = self.bytes = 0
        self._began = time.perf_counter()

    def told(self) -> str:
        """Return examples, rates, bytes written and the time left as one line.

        The time left goes by tokens, which is what takes time; texts are not taken in order of length.
        """
        seconds = max(1e-9, time.perf_counter() - self._began)
        left = seconds * (self.n_tokens - self.tokens) / self.tokens if self.tokens else None
        eta = "–" if left is None else f"{int(left // 60)}:{int(left % 60):02d}"
        return (
            f"{self.examples} of {self.n_examples} examples · {self.examples / seconds:,.1f} examples/s · "
            f"{self.tokens / seconds:,.0f} tokens/s · {self.bytes / 1e6:,.0f} MB written · {eta} left"
        )


class _Counting:
    """Keeps the counts; children show them."""

    def __init__(self, console: Console) -> None:
        self._console, self._counts = console, _Counts()

    def start(self, n_examples: int, n_tokens: int) -> None:
        """Begin counting."""
        self._counts = _Counts(n_examples, n_tokens)
        self._begin()

    def advance(self, n_examples: int, n_tokens: int) -> None:
        """Count what has gone through the model."""
        self._counts.examples += n_examples
        self._counts.tokens += n_tokens
        self._show()

    def written(self, n_bytes: int) -> None:
        """Count what is on disk."""
        self._counts.bytes = n_bytes
        self._show()

    def _begin(self) -> None:
        raise NotImplementedError

    def _show(self) -> None:
        raise NotImplementedError


class Lines(_Counting):
    """Plain lines, one every few seconds."""

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, soft_wrap=True)

    def finish(self) -> None:
        """Print the last line."""
        self.say(self._counts.told())

    def _begin(self) -> None:
        self._next = time.perf_counter() + _SECONDS_BETWEEN_LINES

    def _show(self) -> None:
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _SECONDS_BETWEEN_LINES
            self.say(self._counts.told())


class Bar(_Counting):
    """A bar with rates and time left."""

    def say(self, message: str) -> None:
        """Print one dim line."""
        self._console.print(message, style="dim")

    def finish(self) -> None:
        """Leave the bar as it stands."""
        self._show()
        self._bar.stop()

    def _begin(self) -> None:
        columns = (BarColumn(bar_width=20), TextColumn("{task.fields[told]}", markup=False))
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=self._counts.n_tokens, told="")
        self._bar.start()

    def _show(self) -> None:
        self._bar.update(self._task, completed=self._counts.tokens, told=self._counts.told())
