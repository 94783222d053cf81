"""An interpolated Kneser-Ney n-gram model over token ids: the baselines of the model card.

Chen and Goodman (1999), "An empirical study of smoothing techniques for language modeling", section 2.7, with
one discount an order and an unknown rest spread evenly over the vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Order:
    """Counts of one order.

    Attributes:
        grams: Distinct n-grams as base-(vocab + 1) numbers, ascending, shape [grams].
        counts: How often each was seen (highest order) or after how many words (lower orders), [grams].
        contexts: Distinct contexts, ascending, [contexts].
        totals: Sum of counts in each context, [contexts].
        kinds: Number of distinct n-grams in each context, [contexts].
        discount: What is taken off each count.
    """

    grams: Codes
    counts: Codes
    contexts: Codes
    totals: Codes
    kinds: Codes
    discount: float


class KneserNey:
    """An n-gram model; texts are apart, each begins after `order - 1` marks of its beginning."""

    def __init__(self, rows: Iterable[Sequence[int]], order: int, vocab: int) -> None:
        self.order, self.vocab, self.base = order, vocab, vocab + 1
        if self.base**order >= 2**63:
            raise ValueError(f"{order}-grams of a vocabulary of {vocab} do not fit in 64 bits.")
        grams, counts = np.unique(np.concatenate([self._codes(row) for row in rows]), return_counts=True)
        self._orders = [_order(grams, counts, self.base)]
        for n in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % self.base**n, return_counts=True)
            self._orders.insert(0, _order(grams, counts, self.base))

    def losses(self, row: Sequence[int]) -> NDArray[np.float64]:
        """Return the loss of each token of a text in nats, shape [tokens]."""
        codes = self._codes(row)
        chance = np.full(len(row), 1 / self.vocab)
        for n, level in enumerate(self._orders, start=1):
            chance = _interpolate(level, codes % self.base**n, self.base, chance)
        loss: NDArray[np.float64] = -np.log(chance)
        return loss

    def _codes(self, row: Sequence[int]) -> Codes:
        """Return the n-gram that ends at each token as one number, shape [tokens]; the mark is `vocab`."""
        marked = np.array([self.vocab] * (self.order - 1) + list(row), dtype=np.int64)
        codes = np.zeros(len(row), dtype=np.int64)
        for i in range(self.order):
            codes = codes * self.base + marked[i : i + len(row)]
        return codes


def _order(grams: Codes, counts: Codes, base: int) -> _Order:
    """Sum up one order; the discount is n1 / (n1 + 2 n2), the usual estimate."""
    contexts, starts, kinds = np.unique(grams // base, return_index=True, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    return _Order(grams, counts, contexts, np.add.reduceat(counts, starts), kinds, discount)


def _interpolate(level: _Order, codes: Codes, base: int, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of one order from those of the order below, shape [tokens]."""
    count = _find(level.grams, level.counts, codes)
    total = _find(level.contexts, level.totals, codes // base)
    kinds = _find(level.contexts, level.kinds, codes // base)
    seen = np.maximum(total, 1)
    mixed = np.maximum(count - level.discount, 0) / seen + level.discount * kinds / seen * lower
    return np.where(total > 0, mixed, lower)


def _find(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    """Return the value of each wanted key, 0 where it is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
