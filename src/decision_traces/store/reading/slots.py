"""Which token of an example stands in each slot of a position axis: all of them, or those that a run keeps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from decision_traces.errors import SelectionError
from decision_traces.format.arrays import Positions
from decision_traces.format.lists import Spans


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one position axis (of the queries or the keys, for attention).

    Attributes:
        kept: Which token positions have a slot.
        size: T of the side whose tokens these are.
        spans: Where the tokens of each example lie on that side.
        chosen: For `kept="next"`, the position of each example's prediction, -1 where there is none; (N,).
    """

    kept: Positions
    size: int
    spans: Spans
    chosen: Int64[np.ndarray, " n"] | None = None

    def at(self, index: Any = ()) -> Int64[np.ndarray, "*examples slots"]:
        """Return the token position in each slot, -1 where no token stands there.

        Args:
            index: Of the examples (and choices): a row, a slice, or a tuple of one per axis; all where left out.
        """
        start, stop = self.spans.start[index], self.spans.stop[index]
        if self.kept == "all":
            wanted = np.arange(self.size)
        elif self.kept == "last":
            wanted = np.asarray(stop - 1)[..., None]
        elif self.kept == "next":
            wanted = np.asarray(self._chosen()[index])[..., None]
        else:
            wanted = np.asarray(self.kept)
        inside = (wanted >= np.asarray(start)[..., None]) & (wanted < np.asarray(stop)[..., None])
        return np.where(inside, wanted, -1).astype(np.int64)

    def _chosen(self) -> np.ndarray:
        if self.chosen is None:
            raise SelectionError("This run keeps the position of a prediction, but has none.")
        chosen = self.chosen.reshape(-1, *(1,) * (self.spans.start.ndim - 1))
        return np.broadcast_to(chosen, self.spans.start.shape)

    def find(self, wanted: Int64[np.ndarray, "*examples"], rows: Any = ()) -> Int64[np.ndarray, "*examples"]:
        """Return the slot of one token position of every example; -1 stays -1.

        Args:
            wanted: Token positions.
            rows: Of which rows; of all where left out.

        Raises:
            SelectionError: The position of some example is not kept.
        """
        if self.kept == "all":
            return wanted
        same = (self.at(rows) == wanted[..., None]) & (wanted[..., None] >= 0)
        lost = (wanted >= 0) & ~same.any(axis=-1)
        if lost.any():
            first = tuple(int(i) for i in np.argwhere(lost)[0])
            row = np.arange(len(self.spans.start))[rows][first[0]]
            raise SelectionError(f"Position {wanted[first]} of row {row} is not kept: {self.words()}.")
        return np.where(same.any(axis=-1), same.argmax(axis=-1), -1).astype(np.int64)

    def words(self) -> str:
        """Say which positions a run keeps."""
        if self.kept == "all":
            return f"all positions, 0 to {self.size - 1}"
        if self.kept == "next":
            return "this run keeps each example's position of the prediction alone (--positions next)"
        if self.kept == "last":
            return "this run keeps each example's last token alone (--positions last)"
        return f"this run keeps positions {', '.join(map(str, self.kept))} (--positions)"
