"""A distribution over a vocabulary from its logits, exact to float32 however large the vocabulary is.

torch's own softmax adds up float32 exponentials so that, on a CPU, the sum over 150,000 tokens is too small by some
1e-5: probabilities come out too large, nearly all of them, and entropies off by 1e-4 nats. A plain sum, which torch
adds up pairwise, is right to 2e-6 relatively.
"""

from typing import Final

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

_NEARLY_SURE: Final = 1.01
"""Sums below it have one largest logit, and 0.01 of it in all others."""


def distribution(
    logits: Float[Tensor, "*rows vocab"],
) -> tuple[Float32[Tensor, "*rows vocab"], Float32[Tensor, "*rows"]]:
    """Return the probabilities of every row of logits, and the entropy of every row in nats.

    Args:
        logits: Any float type; computed with in float32. A logit of -inf rules a token out.
    """
    centred, weights, total = _parts(logits)
    probs = weights / total
    return probs, log_total(centred, weights, total[..., 0]) - torch.linalg.vecdot(probs, centred)


def log_probabilities(logits: Float[Tensor, "*rows vocab"], ids: Int[Tensor, "*rows"]) -> Float32[Tensor, "*rows"]:
    """Return the natural logarithm of the probability of one token a row.

    Args:
        logits: As above.
        ids: The token of each row.
    """
    centred, weights, total = _parts(logits)
    return centred.gather(-1, ids[..., None])[..., 0] - log_total(centred, weights, total[..., 0])


def log_total(
    centred: Float32[Tensor, "*rows vocab"], weights: Float32[Tensor, "*rows vocab"], total: Float32[Tensor, "*rows"]
) -> Float32[Tensor, "*rows"]:
    """Return the natural logarithm of the sum of the exponentials of every row.

    Of a row that is nearly sure, the sum is 1 and a little more, which float32 rounds away, though the entropy and the
    surprise at the likely token are about as small. There the little more is summed alone.

    Args:
        centred: The logits below the largest of their row.
        weights: Their exponentials.
        total: The sums of these.
    """
    logs, sure = total.log(), total < _NEARLY_SURE
    if bool(sure.any()):
        logs[sure] = weights[sure].masked_fill(centred[sure] == 0, 0).sum(-1).log1p()
    return logs


def _parts(logits: Float[Tensor, "*rows vocab"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits below the largest, their exponentials, and the sum of these."""
    centred = logits.float() - logits.amax(-1, keepdim=True).float()
    centred.clamp_(min=torch.finfo(torch.float32).min)  # a token that is ruled out adds 0 to the entropy, not NaN
    weights = centred.exp()
    return centred, weights, weights.sum(-1, keepdim=True)
