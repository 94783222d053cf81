"""Drawing the progress of an extraction: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from decision_traces.extract.progress import Progress as ProgressSink
from decision_traces.extract.progress import Silent

_SECONDS_BETWEEN_LINES: Final = 5.0


def make_progress(console: Console, *, quiet: bool) -> ProgressSink:
    """Return what suits the place the output goes to."""
    if quiet:
        return Silent()
    return Bar(console) if console.is_terminal else Lines(console)


class _Counts:
    """Examples, tokens and bytes so far, and the rates."""

    def __init__(self) -> None:
        self.total = self.examples = self.tokens = self.bytes = 0
        self.n_tokens = 1
        self.began = time.perf_counter()

    def rates(self) -> str:
        """Return examples/s, tokens/s and bytes written as text."""
        seconds = max(1e-9, time.perf_counter() - self.began)
        return (
            f"{self.examples / seconds:,.1f} examples/s · {self.tokens / seconds:,.0f} tokens/s · "
            f"{self.bytes / 1e6:,.0f} MB written"
        )

    def eta(self) -> str:
        """Return the time left as text, from the share of tokens done."""
        if not self.tokens:
            return "–"
        left = (time.perf_counter() - self.began) * (self.n_tokens - self.tokens) / self.tokens
        return f"{int(left // 60)}:{int(left % 60):02d}"


class Lines:
    """Plain lines, one every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._counts, self._next = console, _Counts(), 0.0

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, markup=False, soft_wrap=True)

    def start(self, n_examples: int, n_tokens: int) -> None:
        """Begin counting."""
        self._counts = _Counts()
        self._counts.total, self._counts.n_tokens = n_examples, max(1, n_tokens)
        self._next = time.perf_counter() + _SECONDS_BETWEEN_LINES

    def advance(self, n_examples: int, n_tokens: int) -> None:
        """Count, and print a line when the last one is old enough."""
        self._counts.examples += n_examples
        self._counts.tokens += n_tokens
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _SECONDS_BETWEEN_LINES
            self._line()

    def written(self, n_bytes: int) -> None:
        """Remember the bytes for the next line."""
        self._counts.bytes = n_bytes

    def finish(self) -> None:
        """Print the last line."""
        self._line()

    def _line(self) -> None:
        c = self._counts
        self.say(f"{c.examples} of {c.total} examples · {c.rates()} · {c.eta()} left")


class Bar:
    """A bar with rates and time left."""

    def __init__(self, console: Console) -> None:
        self._console, self._counts = console, _Counts()
        self._bar: Progress | None = None

    def say(self, message: str) -> None:
        """Print one dim line."""
        self._console.print(message, style="dim", markup=False)

    def start(self, n_examples: int, n_tokens: int) -> None:
        """Show the bar; it advances by tokens, which cost time, and counts examples beside them."""
        self._counts = _Counts()
        self._counts.total, self._counts.n_tokens = n_examples, max(1, n_tokens)
        self._bar = Progress(
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=n_examples, rates="")

    def advance(self, n_examples: int, n_tokens: int) -> None:
        """Move the bar."""
        self._counts.examples += n_examples
        self._counts.tokens += n_tokens
        self._update()

    def written(self, n_bytes: int) -> None:
        """Show the bytes."""
        self._counts.bytes = n_bytes
        self._update()

    def finish(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._update()
            self._bar.stop()

    def _update(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._counts.examples, rates=self._counts.rates())
