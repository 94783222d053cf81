"""What is asked of logits over a whole vocabulary, in few passes over them.

A lens looks at millions of logits for every state: beside the matrix product that makes them, each further pass counts.
On a CPU some rows at a time go through all passes while they are in its cache, in NumPy, on all cores; on an
accelerator all rows go through each pass, in torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

_GROUPS: Final = 64
"""The largest of every so many logits are found first; the largest of all are among the best of these groups."""
_STRIP_BYTES: Final = 3 << 20
"""Logits that go through all passes together on a CPU: few enough to be in the last level of its cache, so many that
the steps between passes, for which threads wait for each other, do not count."""
Answer = TypeVar("Answer")


class Vocabulary(ABC):
    """One distribution over the vocabulary a row.

    Attributes:
        top_ids: (n, k) most probable tokens, best first.
    """

    top_ids: Int64[np.ndarray, "n k"]

    @abstractmethod
    def logit(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """Return the logits of some tokens of each row."""

    @abstractmethod
    def prob(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """Return the probabilities of some tokens of each row."""

    @abstractmethod
    def rank(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return one more than the number of tokens with a larger logit than one token of each row."""

    @abstractmethod
    def entropy(self) -> Float32[np.ndarray, " n"]:
        """Return the entropy of each row, nats."""

    @abstractmethod
    def divergence_from(self, last: "Vocabulary") -> Float32[np.ndarray, " n"]:
        """Return KL(last ‖ this) of each row, nats; exactly 0 from itself."""


def in_strips(
    logits: Float32[Tensor, "n vocab"], top_k: int, ask: Callable[[Vocabulary, int, slice], Answer]
) -> list[Answer]:
    """Return what is asked of the distributions of some logits, a strip of rows at a time.

    Args:
        logits: One row a state.
        top_k: How many of the most probable tokens to find.
        ask: (distributions of a strip, its number, its rows) → the answer; in any thread.
    """
    if logits.device.type != "cpu":
        return [ask(_OnDevice.of(logits, top_k), 0, slice(0, len(logits)))]
    values = logits.numpy()
    step = max(1, _STRIP_BYTES // max(1, values[:1].nbytes))
    strips = [slice(start, min(start + step, len(values))) for start in range(0, len(values), step)]

    def answer(number: int) -> Answer:
        return ask(_InCache.of(values[strips[number]], top_k), number, strips[number])

    return list(_pool().map(answer, range(len(strips))))


def in_order(answers: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the columns of all strips as one."""
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


@cache
def _pool() -> ThreadPoolExecutor:
    """Return threads for NumPy, as many as torch computes with."""
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="vocabulary")


@dataclass(frozen=True, slots=True)
class _InCache(Vocabulary):
    """A few rows, in NumPy.

    Attributes:
        logits: (n, vocab)
        centred: (n, vocab) less the largest of each row: sums over it lose less to rounding.
        weights: (n, vocab) its exponentials.
        total: (n,) their sum.
        mean: (n,) what `centred` is on average over the distribution.
    """

    logits: Float32[np.ndarray, "n vocab"]
    centred: Float32[np.ndarray, "n vocab"]
    weights: Float32[np.ndarray, "n vocab"]
    total: Float32[np.ndarray, " n"]
    mean: Float32[np.ndarray, " n"]
    top_ids: Int64[np.ndarray, "n k"]

    @classmethod
    def of(cls, logits: Float32[np.ndarray, "n vocab"], top_k: int) -> "_InCache":
        """Return the distributions of some logits."""
        top = _most(logits, min(top_k, logits.shape[1]))
        centred = logits - _at(logits, top[:, :1])
        weights = np.exp(centred)
        total = weights.sum(1)
        return cls(logits, centred, weights, total, np.vecdot(weights, centred) / total, top)

    def logit(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """See `Vocabulary`."""
        return _at(self.logits, ids)

    def prob(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """See `Vocabulary`."""
        found: Float32[np.ndarray, "n m"] = _at(self.weights, ids) / self.total[:, None]
        return found

    def rank(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """See `Vocabulary`."""
        return np.array([np.count_nonzero(row) + 1 for row in self.logits > self.logit(ids[:, None])])

    def entropy(self) -> Float32[np.ndarray, " n"]:
        """See `Vocabulary`."""
        found: Float32[np.ndarray, " n"] = np.log(self.total) - self.mean
        return found

    def divergence_from(self, last: Vocabulary) -> Float32[np.ndarray, " n"]:
        """See `Vocabulary`."""
        if last is self:
            return np.zeros_like(self.total)
        assert isinstance(last, _InCache)
        apart: Float32[np.ndarray, " n"] = last.mean - np.vecdot(last.weights, self.centred) / last.total
        apart += np.log(self.total) - np.log(last.total)
        return apart


def _most(logits: Float32[np.ndarray, "n vocab"], k: int) -> Int64[np.ndarray, "n k"]:
    """Return the k tokens with the largest logits, best first.

    The tokens i, i + m, i + 2 m, … are one group; those with the k largest maxima hold the k largest logits.
    """
    n, vocab = logits.shape
    m = vocab // _GROUPS
    if m <= 4 * k:
        return _best(logits, k)
    groups = _best(logits[:, : _GROUPS * m].reshape(n, _GROUPS, m).max(1), k)
    members = groups[:, None, :] + m * np.arange(_GROUPS)[:, None]
    rest = np.broadcast_to(np.arange(_GROUPS * m, vocab), (n, vocab - _GROUPS * m))
    ids = np.concatenate([members.reshape(n, -1), rest], axis=1)
    return _at(ids, _best(_at(logits, ids), k))


def _at(values: np.ndarray, ids: Int64[np.ndarray, "n m"]) -> np.ndarray:
    """Return some numbers of each row: what `take_along_axis` returns, but sooner where they are few."""
    found: np.ndarray = values[np.arange(len(values))[:, None], ids]
    return found


def _best(values: Float32[np.ndarray, "n m"], k: int) -> Int64[np.ndarray, "n k"]:
    """Return the places of the k largest of each row, the largest first."""
    some = np.argpartition(values, -k, axis=1)[:, -k:]
    order = np.argsort(-_at(values, some), axis=1, kind="stable")
    return _at(some, order)


@dataclass(frozen=True, slots=True)
class _OnDevice(Vocabulary):
    """All rows, in torch.

    Attributes:
        logits, centred, probs: (n, vocab); `centred` as in `_InCache`.
        log_total: (n,) logarithm of the sum of the exponentials of `centred`.
        top_ids: In NumPy.
    """

    logits: Float32[Tensor, "n vocab"]
    centred: Float32[Tensor, "n vocab"]
    probs: Float32[Tensor, "n vocab"]
    log_total: Float32[Tensor, " n"]
    top_ids: Int64[np.ndarray, "n k"]

    @classmethod
    def of(cls, logits: Float32[Tensor, "n vocab"], top_k: int) -> "_OnDevice":
        """Return the distributions of some logits."""
        largest, top = logits.topk(min(top_k, logits.shape[1]), dim=1)
        centred = logits - largest[:, :1]
        probs = torch.softmax(centred, dim=1)
        return cls(logits, centred, probs, -probs.gather(1, top[:, :1])[:, 0].log(), top.cpu().numpy())

    def logit(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """See `Vocabulary`."""
        return self._at(self.logits, ids)

    def prob(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """See `Vocabulary`."""
        return self._at(self.probs, ids)

    def rank(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """See `Vocabulary`."""
        marks = torch.from_numpy(self.logit(ids[:, None])).to(self.logits.device)
        found: Int64[np.ndarray, " n"] = ((self.logits > marks).sum(1) + 1).cpu().numpy()
        return found

    def entropy(self) -> Float32[np.ndarray, " n"]:
        """See `Vocabulary`."""
        found: Float32[np.ndarray, " n"] = (self.log_total - (self.probs * self.centred).sum(1)).cpu().numpy()
        return found

    def divergence_from(self, last: Vocabulary) -> Float32[np.ndarray, " n"]:
        """See `Vocabulary`."""
        if last is self:
            return np.zeros(len(self.logits), np.float32)
        assert isinstance(last, _OnDevice)
        apart = (last.probs * (last.centred - self.centred)).sum(1)
        found: Float32[np.ndarray, " n"] = (apart - last.log_total + self.log_total).cpu().numpy()
        return found

    def _at(self, values: Float32[Tensor, "n vocab"], ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        where = torch.from_numpy(np.ascontiguousarray(ids)).to(values.device)
        found: Float32[np.ndarray, "n m"] = values.gather(1, where).cpu().numpy()
        return found
