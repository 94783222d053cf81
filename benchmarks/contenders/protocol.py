"""What a contender is: something that does a task, and whose arrays can be read back and compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.contenders.task import Task

Read = Callable[[str, int], np.ndarray]
"""Name of an array and number of an example → its values at the example's tokens, padding dropped.

Axes as in our runs without `example`: `attn` is (layer, head, query, key), `q` (layer, head, position, d_head),
`hidden` and the residual stages (layer, position, d_model), `embed` (position, d_model).
"""


class UnavailableError(Exception):
    """A contender cannot do a task; the message is the one sentence that stands in the table instead of figures."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a contender says of one run.

    Attributes:
        seconds: From the first forward pass to the last file written; loading and tokenising are not in it.
        details: Anything else worth keeping, in seconds or counts.
    """

    seconds: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class About:
    """What a reader is told of a contender.

    Attributes:
        title: What tables and pictures call it.
        package: The distribution whose version is reported; None for what everybody has.
        isolated: Whether it must run in a process of its own because it changes the libraries that all share.
        note: What one must know to read its figures; empty where there is nothing.
    """

    title: str
    package: str | None = None
    isolated: bool = False
    note: str = ""


class Contender(Protocol):
    """One way to do the job."""

    about: About

    def run(self, task: Task, folder: Path) -> Ran:
        """Do the task, writing into a folder that does not exist yet.

        Raises:
            UnavailableError: It cannot do this.
        """

    def checked(self, task: Task) -> tuple[str, ...]:
        """Return the names of what `reader` can be asked for."""

    def reader(self, task: Task, folder: Path) -> Read:
        """Return how to read what `run` has written."""
