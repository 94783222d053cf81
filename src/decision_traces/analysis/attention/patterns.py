"""Six figures of one attention matrix: how spread it is, how far it looks, and which tokens it looks for."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Int64

ATTENTION_FIGURES: Final = (
    "attn_entropy",
    "attn_distance",
    "previous_mass",
    "first_mass",
    "same_mass",
    "induction_mass",
)
_TINY: Final = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Repetitions:
    """Where a text repeats itself, and so which cells of its attention matrices are looked at.

    Attributes:
        n: Tokens.
        causal: Whether a query sees no later key.
        same: Flat indices q·n + k of cells whose key is an earlier token like the query.
        same_rows: Queries that have such a cell.
        induction: Flat indices of cells whose key comes right after an earlier token like the query.
        induction_rows: Queries that have such a cell.
    """

    n: int
    causal: bool
    same: Int64[np.ndarray, " same"]
    same_rows: int
    induction: Int64[np.ndarray, " induction"]
    induction_rows: int


def repetitions_of(input_ids: Int64[np.ndarray, " n"], *, causal: bool) -> Repetitions:
    """Find the repetitions of a text, once for all its layers and heads."""
    n = len(input_ids)
    alike, earlier = input_ids[:, None] == input_ids, np.tri(n, k=-1, dtype=bool)
    same, after = alike & earlier, np.zeros((n, n), bool)
    after[:, 1:] = alike[:, :-1]
    after &= earlier
    return Repetitions(
        n=n,
        causal=causal,
        same=np.flatnonzero(same),
        same_rows=int(same.any(1).sum()),
        induction=np.flatnonzero(after),
        induction_rows=int(after.any(1).sum()),
    )


def measure_heads(attn: Float[np.ndarray, "head n n"], repeats: Repetitions) -> Float32[np.ndarray, "head figure"]:
    """Return `ATTENTION_FIGURES` of every head on one text; `AttentionStatistics` defines them.

    Args:
        attn: Attention probabilities (query, key) over tokens only.
        repeats: The text's repetitions.
    """
    heads, n = attn.shape[:2]
    if n != repeats.n:
        raise ValueError(f"attention over {n} tokens, but repetitions of {repeats.n}")
    result = np.full((heads, len(ATTENTION_FIGURES)), np.nan, np.float32)
    if n < 2:
        return result
    p = attn.astype(np.float32)
    first = 1 if repeats.causal else 0  # the first query of a decoder sees only itself
    probs = p[:, first:]
    # p ln p is 0 where p is: the bound under the logarithm keeps 0·ln 0 out and changes no float16 above 0.
    result[:, 0] = -(probs * np.log(np.maximum(probs, _TINY))).sum(2).mean(1)
    position = np.arange(n, dtype=np.float32)
    result[:, 1] = np.einsum("hqk,qk->hq", probs, np.abs(position[first:, None] - position)).mean(1)
    result[:, 2] = p.diagonal(-1, axis1=1, axis2=2).mean(1)
    result[:, 3] = p[:, 1:, 0].mean(1)
    flat = p.reshape(heads, n * n)
    if repeats.same_rows:
        result[:, 4] = flat[:, repeats.same].sum(1) / repeats.same_rows
    if repeats.induction_rows:
        result[:, 5] = flat[:, repeats.induction].sum(1) / repeats.induction_rows
    return result
