"""Right-padded batches of token ids, as anybody makes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some examples side by side.

    Attributes:
        rows: Their numbers in the data set.
        lengths: Number of tokens of each.
        ids: (batch, position) token ids, 0 at the padding.
        mask: (batch, position), 1 for tokens.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    ids: Tensor
    mask: Tensor

    @property
    def next_positions(self) -> Tensor:
        """(batch,) position whose next token is the text's last; 0 for a text of one token."""
        return torch.tensor([max(0, n - 2) for n in self.lengths])


def pad(rows: Sequence[int], tokens: Tokens, width: int = 0) -> Batch:
    """Return a batch of some rows, padded on the right to the longest of them, or to a width."""
    lengths = tuple(len(tokens[row]) for row in rows)
    ids = torch.zeros(len(rows), max(width, *lengths, 1), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = torch.tensor(tokens[row])
        mask[i, : lengths[i]] = 1
    return Batch(tuple(rows), lengths, ids, mask)


def in_order(tokens: Tokens, batch_size: int) -> Iterator[Batch]:
    """Yield batches of so many examples in the order of the data set."""
    for start in range(0, len(tokens), batch_size):
        yield pad(range(start, min(start + batch_size, len(tokens))), tokens)
