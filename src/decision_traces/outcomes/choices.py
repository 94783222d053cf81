"""Outcomes of choosing between answers: from one score a choice to the columns of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from decision_traces.errors import NonFiniteError


@dataclass(frozen=True, slots=True)
class ChoiceOutcomes:
    """One decision a row.

    Attributes:
        logits: (n, choices) score of each choice.
        probs: (n, choices) softmax of the scores over the choices.
        pred_idx: (n,) choice with the highest score, the first of equals.
    """

    logits: Float32[np.ndarray, "n choices"]
    probs: Float32[np.ndarray, "n choices"]
    pred_idx: Int32[np.ndarray, " n"]

    def columns(self, labels: Sequence[Sequence[str]], correct_idx: Sequence[int]) -> dict[str, list[object]]:
        """Return the columns that every workflow with choices has.

        Args:
            labels: Letters of the choices of each row.
            correct_idx: The right choice of each row; -1 without an answer.
        """
        pred = self.pred_idx.tolist()
        return {
            "choice_labels": [list(row) for row in labels],
            "choice_logits": list(self.logits),
            "choice_probs": list(self.probs),
            "pred_idx": pred,
            "pred_label": [row[i] for row, i in zip(labels, pred, strict=True)],
            "is_correct": [None if c < 0 else i == c for i, c in zip(pred, correct_idx, strict=True)],
        }


def choice_outcomes(logits: Float[Tensor, "n choices"]) -> ChoiceOutcomes:
    """Describe the decision in every row.

    Args:
        logits: Score of each choice, any float type; computed with in float32.

    Raises:
        NonFiniteError: A score is NaN or infinite.
    """
    logits = logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError(
            "The model computed a score that is NaN or infinite: its weights may be damaged, or --model_dtype too "
            "narrow for it (try float32). The run was stopped; nothing was committed."
        )
    return ChoiceOutcomes(
        logits=logits.cpu().numpy(),
        probs=torch.softmax(logits, dim=-1).cpu().numpy(),
        pred_idx=logits.argmax(-1).to(torch.int32).cpu().numpy(),
    )
