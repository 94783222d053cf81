"""Next-token outcomes: from logits and the actual next tokens to the columns of a table."""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from decision_traces.errors import NonFiniteError
from decision_traces.outcomes.distribution import distribution

UNKNOWN: Final = -1
"""In place of the id of an actual token that is not known."""


@dataclass(frozen=True, slots=True)
class NextTokenOutcomes:
    """One prediction a row. Probabilities in [0, 1], entropy in nats, margin in logits, rank 1 = top.

    Attributes:
        true_id: (n,) actual token; -1 where it is not known.
        pred_id: (n,) most probable token.
        correct: (n,) whether they are the same; False where the actual token is not known.
        true_prob: (n,) probability of the actual token; NaN where it is not known.
        pred_prob: (n,) probability of the predicted token.
        entropy: (n,) of the whole distribution.
        true_rank: (n,) one more than the number of tokens with a larger logit than the actual one; 0 where it is not
            known.
        margin: (n,) top-1 minus top-2 logit.
        topk_ids: (n, k) most probable tokens, best first.
        topk_probs: (n, k) their probabilities.
    """

    true_id: Int32[np.ndarray, " n"]
    pred_id: Int32[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"]
    true_prob: Float32[np.ndarray, " n"]
    pred_prob: Float32[np.ndarray, " n"]
    entropy: Float32[np.ndarray, " n"]
    true_rank: Int32[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]
    topk_ids: Int32[np.ndarray, "n k"]
    topk_probs: Float32[np.ndarray, "n k"]

    def columns(self) -> dict[str, np.ndarray]:
        """Return the fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def rows(self, part: slice) -> "NextTokenOutcomes":
        """Return some of the rows."""
        return NextTokenOutcomes(**{name: values[part] for name, values in self.columns().items()})


def next_token_outcomes(logits: Float[Tensor, "n vocab"], true_ids: Int[Tensor, " n"], k: int) -> NextTokenOutcomes:
    """Describe the prediction in every row.

    Args:
        logits: Scores over the vocabulary, any float type; computed with in float32.
        true_ids: The actual tokens; -1 where one is not known.
        k: How many of the most probable tokens to keep; cut to the size of the vocabulary.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
    """
    logits = logits.float()
    if not bool(torch.isfinite(logits.amax(-1)).all()):  # -inf rules a token out, and is fine
        raise NonFiniteError(
            "The model computed logits that are NaN or infinite: its weights may be damaged, or --model_dtype too "
            "narrow for it (try float32). The run was stopped; nothing was committed."
        )
    probs, entropy = distribution(logits)
    top = torch.topk(logits, max(2, min(k, logits.shape[-1])), dim=-1)
    kept = top.indices[:, : min(k, logits.shape[-1])]
    truth = true_ids.to(logits.device, torch.long).unsqueeze(1)
    known, at = (truth >= 0)[:, 0], truth.clamp(min=0)
    pred = top.indices[:, :1]
    return NextTokenOutcomes(
        true_id=_int32(truth[:, 0]),
        pred_id=_int32(pred[:, 0]),
        correct=(truth == pred)[:, 0].cpu().numpy(),
        true_prob=_float32(torch.where(known, probs.gather(1, at)[:, 0], torch.nan)),
        pred_prob=_float32(probs.gather(1, pred)[:, 0]),
        entropy=_float32(entropy),
        true_rank=_int32(torch.where(known, (logits > logits.gather(1, at)).sum(-1) + 1, 0)),
        margin=_float32(top.values[:, 0] - top.values[:, 1]),
        topk_ids=_int32(kept),
        topk_probs=_float32(probs.gather(1, kept)),
    )


def _int32(value: Tensor) -> np.ndarray:
    return value.to(torch.int32).cpu().numpy()


def _float32(value: Tensor) -> np.ndarray:
    return value.to(torch.float32).cpu().numpy()
