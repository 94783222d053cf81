"""What of a padded tensor belongs to each row of a batch: how captures are handed to whoever writes them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """One tensor of a batch, and how much of it is kept of each row: the top left corner of its room on disk.

    Attributes:
        values: (rows, [heads,] positions, width) in the storage type, padding and all.
        rows: Where each row goes: its number in the block, times the number of choices, plus the choice.
        slots: How many positions of each row are kept.
        widths: How many entries of the last axis of each row are kept; None: all.
    """

    values: np.ndarray
    rows: tuple[int, ...]
    slots: tuple[int, ...]
    widths: tuple[int, ...] | None = None

    def piece(self, at: int) -> np.ndarray:
        """Return what is kept of one row of the batch, a view: ([heads,] slots, width)."""
        entries: np.ndarray = self.values[at][..., : self.slots[at], :]
        return entries if self.widths is None else entries[..., : self.widths[at]]

    def by_row(self) -> dict[int, np.ndarray]:
        """Return the pieces of all rows that have any, by where they go."""
        return {row: self.piece(at) for at, row in enumerate(self.rows) if self.slots[at]}

    @property
    def nbytes(self) -> int:
        """Size of all pieces in bytes."""
        width: int = self.values.shape[-1]
        planes: int = self.values.itemsize * (self.values.shape[1] if self.values.ndim > 3 else 1)
        widths = self.widths or (width,) * len(self.rows)
        return planes * sum(n * w for n, w in zip(self.slots, widths, strict=True))
