"""`Run`: a run folder with its analyses and its page. Opening one needs no torch."""

from os import PathLike
from typing import TYPE_CHECKING

from decision_traces.store import ExampleKey, TraceStore, newest_run

if TYPE_CHECKING:
    from decision_traces.page.notebook import PageFrame
    from decision_traces.page.still import Still


class Run(TraceStore):
    """A run folder, open for reading, for analyses and to be looked at; `TraceStore` says how it is read.

    Examples:
        >>> run = Run("traces/wt2_val500_gpt2")  # doctest: +SKIP
        >>> run.hidden(0).shape  # doctest: +SKIP
        (13, 256, 768)
        >>> run.view()  # doctest: +SKIP
    """

    def view(self, example: ExampleKey | None = None) -> "PageFrame":
        """Return the page that `decision-traces view` opens, framed for a notebook; see `page.notebook.view`."""
        from decision_traces.page.notebook import view

        return view(self, example)

    def show(self, example: ExampleKey) -> "Still":
        """Return one example as a still picture, without a server; see `page.still.show`."""
        from decision_traces.page.still import show

        return show(self, example)


def open_run(path: str | PathLike[str] | None = None, root: str | PathLike[str] = "traces") -> Run:
    """Open a run folder; the newest complete one under `root` where no path is given.

    Raises:
        RunError: There is none.
    """
    return Run(newest_run(root) if path is None else path)
