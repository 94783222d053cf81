"""What is asked of logits over a whole vocabulary, in few passes over them.

A lens looks at millions of logits for every state: beside the matrix product that makes them, each further pass counts.
On a CPU some rows at a time go through all passes while they are in its cache; on an accelerator, all rows. All passes
are torch's: its threads, which have just made the product, still wait for work on their cores, and would take these
from threads of our own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decision_traces.outcomes.distribution import log_total

_GROUPS: Final = 64
"""The largest of every so many logits are found first; the largest of all are among the best of these groups."""
_STRIP_BYTES: Final = 3 << 20
"""Logits that go through all passes together on a CPU: few enough to be in the last level of its cache, so many that
the steps between passes, for which threads wait for each other, do not count."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One distribution over the vocabulary a row.

    Attributes:
        logits: (n, vocab)
        centred: (n, vocab) less the largest of each row: sums over it lose less to rounding; never -inf.
        weights: (n, vocab) exponentials of `centred`.
        total: (n,) their sum.
        mean: (n,) what `centred` is on average over the distribution.
        top_ids: (n, k) most probable tokens, best first.
    """

    logits: Float32[Tensor, "n vocab"]
    centred: Float32[Tensor, "n vocab"]
    weights: Float32[Tensor, "n vocab"]
    total: Float32[Tensor, " n"]
    mean: Float32[Tensor, " n"]
    top_ids: Int64[np.ndarray, "n k"]

    @classmethod
    def of(cls, logits: Float32[Tensor, "n vocab"], top_k: int) -> "Vocabulary":
        """Return the distributions of some logits."""
        top = _most(logits, min(top_k, logits.shape[1]))
        centred = (logits - logits.gather(1, top[:, :1])).clamp_(min=torch.finfo(torch.float32).min)
        weights = centred.exp()
        total = weights.sum(1)  # not torch's softmax: see `outcomes.distribution`
        mean = torch.linalg.vecdot(weights, centred) / total
        return cls(logits, centred, weights, total, mean, top.cpu().numpy())

    def pick(self, rows: Int64[np.ndarray, " m"]) -> "Vocabulary":
        """Return some of the rows; all of them as they are."""
        if len(rows) == len(self.logits):
            return self
        at = torch.from_numpy(rows).to(self.logits.device)
        large = self.logits[at], self.centred[at], self.weights[at]
        return Vocabulary(*large, self.total[at], self.mean[at], self.top_ids[rows])

    def logit(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """Return the logits of some tokens of each row."""
        return _at(self.logits, ids)

    def prob(self, ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
        """Return the probabilities of some tokens of each row."""
        probs: Float32[np.ndarray, "n m"] = _at(self.weights, ids) / self.total.cpu().numpy()[:, None]
        return probs

    def rank(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return one more than the number of tokens with a larger logit than one token of each row."""
        mark = self.logits.gather(1, _as_tensor(ids[:, None], self.logits))
        # As numbers, which torch counts several times as fast as truths; float32 holds all up to 16 million exactly.
        larger = torch.gt(self.logits, mark, out=torch.empty_like(self.logits)).sum(1)
        ranks: Int64[np.ndarray, " n"] = larger.long().cpu().numpy() + 1
        return ranks

    def entropy(self) -> Float32[np.ndarray, " n"]:
        """Return the entropy of each row, nats."""
        entropy: Float32[np.ndarray, " n"] = (self._log_total() - self.mean).cpu().numpy()
        return entropy

    def _log_total(self) -> Float32[Tensor, " n"]:
        return log_total(self.centred, self.weights, self.total)

    def divergence_from(self, last: "Vocabulary") -> Float32[np.ndarray, " n"]:
        """Return KL(last ‖ this) of each row, nats; exactly 0 from itself."""
        if last is self:
            return np.zeros(len(self.logits), np.float32)
        apart = last.mean - torch.linalg.vecdot(last.weights, self.centred) / last.total
        divergence: Float32[np.ndarray, " n"] = (apart - last._log_total() + self._log_total()).cpu().numpy()
        return divergence


def in_strips(
    logits: Float32[Tensor, "n vocab"], top_k: int, ask: Callable[[Vocabulary, int, slice], Answer]
) -> list[Answer]:
    """Return what is asked of the distributions of some logits, a strip of rows at a time.

    Args:
        logits: One row a state.
        top_k: How many of the most probable tokens to find.
        ask: (distributions of a strip, its number, its rows) → the answer.
    """
    n, step = len(logits), len(logits)
    if logits.device.type == "cpu":
        step = max(1, _STRIP_BYTES // max(1, logits[:1].nbytes))
    strips = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    with torch.inference_mode():
        return [ask(Vocabulary.of(logits[rows], top_k), number, rows) for number, rows in enumerate(strips)]


def in_order(answers: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the columns of all strips as one."""
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _most(logits: Float32[Tensor, "n vocab"], k: int) -> Int64[Tensor, "n k"]:
    """Return the k tokens with the largest logits, best first.

    The tokens i, i + m, i + 2 m, … are one group; those with the k largest maxima hold the k largest logits.
    """
    n, vocab = logits.shape
    m = vocab // _GROUPS
    if m <= 4 * k:
        return logits.topk(k, dim=1).indices
    groups = logits[:, : _GROUPS * m].view(n, _GROUPS, m).amax(1).topk(k, dim=1).indices
    members = groups[:, None, :] + m * torch.arange(_GROUPS, device=logits.device)[:, None]
    ungrouped = torch.arange(_GROUPS * m, vocab, device=logits.device).expand(n, -1)
    ids = torch.cat([members.reshape(n, -1), ungrouped], dim=1)
    return ids.gather(1, logits.gather(1, ids).topk(k, dim=1).indices)


def _at(values: Float32[Tensor, "n vocab"], ids: Int64[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
    entries: Float32[np.ndarray, "n m"] = values.gather(1, _as_tensor(ids, values)).cpu().numpy()
    return entries


def _as_tensor(ids: Int64[np.ndarray, "n m"], values: Tensor) -> Int64[Tensor, "n m"]:
    return torch.from_numpy(np.ascontiguousarray(ids)).to(values.device)
