"""One look through the lens: some positions at all depths, each state multiplied by the unembedding once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.lens.vocabulary import Vocabulary, in_order, in_strips

Columns = dict[str, np.ndarray]
State = tuple[Float[Tensor, "m d_model"], bool]
"""A state of the stream at some positions, and whether the final norm has been applied already."""
Ask = Callable[[Vocabulary, slice], Columns]
"""(distributions of some positions, which of them) → what else is wanted of these."""
Begin = Callable[[Float[Tensor, "m vocab"], Sequence[tuple[Vocabulary, slice]]], Ask]
"""(logits at the end of the model, their distributions strip by strip) → what is asked at every depth."""


def look(
    unembedding: Unembedding, states: Sequence[State], n_top: int, begin: Begin, *, with_end: bool = True
) -> Columns:
    """Return the statistics of the lens at every depth.

    Args:
        unembedding: The model's final norm and output embedding.
        states: The way of m positions through the model; the last is the model's end.
        n_top: How many of the most probable tokens to find.
        begin: Called once, with the end of the model; what it returns is called at every depth.
        with_end: Whether the end is a depth itself, and not only what others are compared with.

    Returns:
        `top_ids` and `top_probs` (m, depth, top), `entropy`, `margin` and `kl` to the end (m, depth), and whatever else
        was asked, (…, depth, …).
    """
    end = unembedding.logits(states[-1][0], normed=states[-1][1])
    last = in_strips(end, n_top, lambda one, _number, rows: (one, rows))
    ask = begin(end, last)

    def describe(one: Vocabulary, number: int, rows: slice) -> Columns:
        return _statistics(one, last[number][0]) | ask(one, rows)

    before = (unembedding.logits(state, normed=normed) for state, normed in states[:-1])
    depths = [in_order(in_strips(logits, n_top, describe)) for logits in before]
    if with_end:
        with torch.inference_mode():
            depths.append(in_order([describe(one, number, rows) for number, (one, rows) in enumerate(last)]))
    return {name: np.stack([depth[name] for depth in depths], axis=1) for name in depths[0]}


def _statistics(one: Vocabulary, last: Vocabulary) -> Columns:
    """Describe some distributions; `last` are those at the model's end, at the same positions."""
    best = one.logit(one.top_ids[:, :2])
    return {
        "top_ids": one.top_ids.astype(np.int32),
        "top_probs": one.prob(one.top_ids),
        "entropy": one.entropy(),
        "margin": best[:, 0] - best[:, -1],
        "kl": one.divergence_from(last),
    }
