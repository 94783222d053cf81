"""The logit lens: what the model would predict if it ended after each layer."""

import numpy as np
import torch
from torch import Tensor

from decision_traces.analysis.results import LensTrajectories
from decision_traces.analysis.unembedding import Unembedding
from decision_traces.errors import DataError, ModelError
from decision_traces.store.reader import TraceStore

_ROWS_AT_ONCE = 256
_MOST_ERROR = 0.05  # far above the rounding of float16 or bfloat16, far below a norm or a scale left out


def logit_lens(store: TraceStore, unembedding: Unembedding) -> LensTrajectories:
    """Read every depth of the residual stream at the position of the prediction as if the model ended there.

    Method: nostalgebraist 2020, "interpreting GPT: the logit lens". `hidden[L]` is normed already and is not
    normed twice; the last depth is therefore the model's own prediction, up to the rounding of the stored
    numbers, and how far it is off stands in `model_error`.

    Args:
        store: A decoder run that captured `hidden`.
        unembedding: The model's final norm and output embedding.

    Raises:
        NotCapturedError: The run did not capture `hidden`.
        DataError: No example of the run has a prediction.
        ModelError: The last depth is not the model's own prediction, so that nothing before it can be trusted.
    """
    hidden = store.gather("dec_hidden", position="next")
    tokens = store.tokens
    rows = np.flatnonzero(tokens["next_pos"].to_numpy() >= 0)
    if len(rows) == 0:
        raise DataError(f"{store.run_dir} holds no prediction: all its texts have fewer than two tokens.")
    truth = torch.from_numpy(tokens["next_true_id"].to_numpy(dtype=np.int64, na_value=-1)[rows])
    final = torch.from_numpy(tokens["next_pred_id"].to_numpy(dtype=np.int64, na_value=-1)[rows])
    parts = [
        _trajectory(torch.from_numpy(hidden[rows[part]]), truth[part], final[part], unembedding)
        for part in _slices(len(rows))
    ]
    columns = {name: torch.cat([p[name] for p in parts]).numpy() for name in parts[0]}
    stored = tokens["next_pred_prob"].to_numpy(dtype=np.float32, na_value=np.nan)[rows]
    model_error = float(np.abs(columns["final_prob"][:, -1] - stored).max())
    if not model_error < _MOST_ERROR:
        raise ModelError(f"The lens misses the model's own probabilities by {model_error:.3f} at the last layer.")
    return LensTrajectories(
        example_id=tuple(tokens["example_id"].iloc[rows]),
        correct=tokens["next_correct"].iloc[rows].to_numpy(dtype=bool),
        model_error=model_error,
        **columns,
    )


def _slices(n: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, n, _ROWS_AT_ONCE)]


def _trajectory(hidden: Tensor, truth: Tensor, final: Tensor, unembedding: Unembedding) -> dict[str, Tensor]:
    """Return the statistics of some rows at all depths; the last depth is computed first, for the divergence."""
    depths = hidden.shape[1]
    last = torch.log_softmax(unembedding.logits(hidden[:, -1], normed=True), dim=-1)
    columns = [_statistics(last, last, truth, final)]
    for depth in range(depths - 1):
        log_probs = torch.log_softmax(unembedding.logits(hidden[:, depth], normed=False), dim=-1)
        columns.insert(depth, _statistics(log_probs, last, truth, final))
    return {name: torch.stack([c[name] for c in columns], dim=1).cpu() for name in columns[0]}


def _statistics(log_probs: Tensor, last: Tensor, truth: Tensor, final: Tensor) -> dict[str, Tensor]:
    truth, final = (ids.to(log_probs.device)[:, None] for ids in (truth, final))
    probs = log_probs.exp()
    of_truth = log_probs.gather(1, truth)
    return {
        "top_id": log_probs.argmax(1).to(torch.int32),
        "true_prob": of_truth[:, 0].exp(),
        "final_prob": log_probs.gather(1, final)[:, 0].exp(),
        "true_rank": ((log_probs > of_truth).sum(1) + 1).to(torch.int32),
        "entropy": torch.special.entr(probs).sum(1),
        "kl_to_final": (last.exp() * (last - log_probs)).sum(1),
    }
