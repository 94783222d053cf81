"""What is asked of logits over a whole vocabulary, in few passes over them.

A lens looks at millions of logits for every state: beside the matrix product that makes them, each further pass counts.
On a CPU some passes are NumPy's, whose dot products and counts are several times faster than torch's reductions.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCKS: Final = 64
"""The largest of every so many logits are found first; the largest of all are among the best of these groups."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One distribution over the vocabulary a row.

    Attributes:
        logits: (n, vocab)
        centred: (n, vocab) less the largest of each row: sums over it lose less to rounding.
        probs: (n, vocab)
        log_total: (n,) logarithm of the sum of the exponentials of `centred`.
        top_ids: (n, k) most probable tokens, best first.
    """

    logits: Float[Tensor, "n vocab"]
    centred: Float[Tensor, "n vocab"]
    probs: Float[Tensor, "n vocab"]
    log_total: Float[Tensor, " n"]
    top_ids: Int[Tensor, "n k"]

    @classmethod
    def of(cls, logits: Float[Tensor, "n vocab"], top_k: int) -> "Vocabulary":
        """Return the distributions of some logits, and their `top_k` most probable tokens."""
        top = _most(logits, min(top_k, logits.shape[1]))
        centred = logits - logits.gather(1, top[:, :1])
        probs = torch.softmax(centred, dim=1)
        return cls(logits, centred, probs, -probs.gather(1, top[:, :1])[:, 0].log(), top)

    def logit(self, ids: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the logits of some tokens of each row."""
        return self.logits.gather(1, ids)

    def prob(self, ids: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the probabilities of some tokens of each row."""
        return self.probs.gather(1, ids)

    def rank(self, ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return one more than the number of tokens with a larger logit than one token of each row."""
        at = self.logits.gather(1, ids[:, None])
        if at.device.type != "cpu":
            return (self.logits > at).sum(1) + 1
        rows = zip(self.logits.numpy(), at.numpy(), strict=True)
        return torch.tensor([np.count_nonzero(row > mark) + 1 for row, mark in rows])

    def entropy(self) -> Float[Tensor, " n"]:
        """Return the entropy of each row, nats."""
        return self.log_total - _dot(self.probs, self.centred)

    def divergence_from(self, last: "Vocabulary") -> Float[Tensor, " n"]:
        """Return KL(last ‖ this) of each row, nats; exactly 0 from itself."""
        if last is self:
            return torch.zeros_like(self.log_total)
        return _dot(last.probs, last.centred - self.centred) - last.log_total + self.log_total


def _dot(one: Float[Tensor, "n vocab"], other: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    if one.device.type != "cpu":
        return (one * other).sum(1)
    return torch.from_numpy(np.vecdot(one.numpy(), other.numpy()))


def _most(logits: Float[Tensor, "n vocab"], k: int) -> Int[Tensor, "n k"]:
    """Return the k tokens with the largest logits, best first.

    The tokens i, i + m, i + 2 m, … are one group; those with the k largest maxima hold the k largest logits.
    """
    n, vocab = logits.shape
    m = vocab // _BLOCKS
    if m <= 4 * k:
        return logits.topk(k, dim=1).indices
    in_groups = logits[:, : _BLOCKS * m]
    groups = in_groups.view(n, _BLOCKS, m).amax(1).topk(k, dim=1).indices
    members = groups[:, None, :] + m * torch.arange(_BLOCKS, device=logits.device)[:, None]
    rest = torch.arange(_BLOCKS * m, vocab, device=logits.device).expand(n, -1)
    ids = torch.cat([members.reshape(n, -1), rest], dim=1)
    found: Int[Tensor, "n k"] = ids.gather(1, logits.gather(1, ids).topk(k, dim=1).indices)
    return found
