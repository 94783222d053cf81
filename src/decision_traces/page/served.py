"""One run under its name in the page, whatever lies at its path: opened again when it was replaced or analysed."""

import threading
from collections.abc import Callable
from typing import TypeVar

from decision_traces.errors import ReplacedRunError, TraceError
from decision_traces.page.runs import PageRun, analyses_of

Answer = TypeVar("Answer")


class ServedRun:
    """A run that is opened again once it is another one, with nothing kept of what was read before.

    Attributes:
        opened: The run as it was opened last.
    """

    def __init__(self, run: PageRun) -> None:
        """Begin with an open run."""
        self.opened = run
        self._lock = threading.Lock()

    @property
    def key(self) -> str:
        """Its name in URLs."""
        return self.opened.key

    def current(self) -> PageRun:
        """Return the run as it is now.

        Raises:
            RunError: It is gone, or what lies there now is no complete run.
        """
        run = self.opened
        try:
            run.store.still.check()
            if analyses_of(run.place) == run.analyses:
                return run
        except ReplacedRunError:
            pass
        with self._lock:
            if self.opened is run:
                self.opened = PageRun(run.key, run.place)
            return self.opened

    def answer(self, make: Callable[[PageRun], Answer]) -> Answer:
        """Make an answer of one state of the run: what began before an exchange and ended after it is made again.

        Raises:
            ReplacedRunError: The run was exchanged a second time meanwhile.
        """
        for _ in range(2):
            run = self.current()
            try:
                made = make(run)
            except TraceError:
                if self.current() is run:
                    raise
                continue
            if self.current() is run:
                return made
        raise ReplacedRunError(f"{run.run_dir} is being replaced. Ask again.")
