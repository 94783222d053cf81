"""The positions of a pass that are kept, where a run does not keep all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Slots:
    """The positions that are kept of each row of a pass; slots without a token stand behind the others.

    Attributes:
        index: (rows, slots) position of each slot; any where there is no token.
        empty: (rows, slots) whether no token stands there; None where one stands in each.
        counts: How many slots of each row have a token.
    """

    index: Tensor
    empty: Tensor | None
    counts: tuple[int, ...]

    @classmethod
    def of(cls, slots: Sequence[Sequence[int]], lengths: Sequence[int]) -> "Slots":
        """Return the slots of a pass, given the position of each (-1 for none) and the length of each row."""
        tokens = [[p for p in row if 0 <= p < n] for row, n in zip(slots, lengths, strict=True)]
        index = torch.zeros(len(slots), max(map(len, slots), default=0), dtype=torch.long)
        for row, positions in enumerate(tokens):
            index[row, : len(positions)] = torch.tensor(positions, dtype=torch.long)
        counts = tuple(map(len, tokens))
        empty = torch.arange(index.shape[1]) >= torch.tensor(counts)[:, None]
        return cls(index, empty if bool(empty.any()) else None, counts)

    def taken(self, value: Tensor) -> Tensor:
        """Return a tensor's kept positions, zero where there is none: (rows, [heads,] slots, width)."""
        if self.index.device != value.device:
            self.index = self.index.to(value.device)
            self.empty = None if self.empty is None else self.empty.to(value.device)
        heads = (1,) * (value.dim() - 3)
        index = self.index.view(len(self.index), *heads, -1, 1)
        kept = value.take_along_dim(index, dim=value.dim() - 2)
        return kept if self.empty is None else kept.masked_fill(self.empty.view(index.shape), 0)
