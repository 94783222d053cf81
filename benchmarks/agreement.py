"""Did they all do the same work? Every array of every contender against ours, at the tokens of every example."""

import shutil
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.protocol import Read
from benchmarks.contenders.task import Task

MOST_DIFFERENCE: Final = 1e-2
"""What float16 and another order of additions explain."""


class Agreement:
    """Our run of a task, to compare the others' with."""

    def __init__(self, task: Task, scratch: Path) -> None:
        """Run ours, in a folder under `scratch`."""
        self._task, self._folder = task, scratch / "ours"
        CONTENDERS["ours"].run(task, self._folder)
        self._ours = CONTENDERS["ours"].reader(task, self._folder)

    def of(self, name: str) -> dict[str, float]:
        """Let a contender do the same task and return the largest relative difference of each of its arrays.

        Raises:
            UnavailableError: It cannot do this.
        """
        contender, folder = CONTENDERS[name], self._folder.with_name(name)
        try:
            contender.run(self._task, folder)
            theirs = contender.reader(self._task, folder)
            return {array: self._worst(array, theirs) for array in contender.checked(self._task)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove our run."""
        shutil.rmtree(self._folder)

    def _worst(self, array: str, theirs: Read) -> float:
        return max(relative_difference(theirs(array, row), self._ours(array, row)) for row in range(self._task.limit))


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of an element, relative to that element and the median magnitude of all.

    The median is over what is not zero: half of an attention array is the empty triangle.

    Raises:
        ValueError: The shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"shapes differ: {found.shape} and {expected.shape}")
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    magnitude = np.abs(b)
    median = np.median(magnitude[magnitude > 0]) if magnitude.any() else 1.0
    difference = float((np.abs(a - b) / (magnitude + median)).max(initial=0.0))
    return difference if np.isfinite(difference) else float("inf")
