"""A bar for work that counts its steps: on a terminal, and not when quiet."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from decision_traces.printable import printable


@contextmanager
def counting(console: Console, what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar while the block runs; yield the function to call with (done, of how many), or None without one."""
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
