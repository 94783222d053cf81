"""How figures of the examples go with a number: Pearson's r with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64

from decision_traces.analysis.comparison.groups import Estimate, false_discovery, flattened
from decision_traces.analysis.moments import divide, draws, nan_mean, percentile_interval
from decision_traces.errors import UsageError

_FEWEST: Final = 3
_ROUNDING: Final = 1e-12  # a spread below this share of the values is none


@dataclass(frozen=True, slots=True)
class Correlation:
    """How m figures go with a number.

    Attributes:
        figure: (m,) what is correlated.
        axes: Where in the model, (m,) each: `layer` and `head`, or nothing.
        n: (m,) examples in which the figure is finite.
        r: Pearson's correlation; NaN below 3 examples, or where the figure is constant.
        p_value: (m,) two-sided, by Student's t.
        q_value: (m,) the same after Benjamini & Hochberg (1995) over all figures correlated together.
        level: Of the intervals.
        n_compared: Figures correlated together, which may be more than are kept here.
    """

    figure: tuple[str, ...]
    axes: Mapping[str, Int64[np.ndarray, " m"]]
    n: Int64[np.ndarray, " m"]
    r: Estimate
    p_value: Float64[np.ndarray, " m"]
    q_value: Float64[np.ndarray, " m"]
    level: float
    n_compared: int

    def __post_init__(self) -> None:
        """Check that all fields speak of the same figures."""
        arrays = (self.n, self.r.value, self.p_value, self.q_value, *self.axes.values())
        if {len(a) for a in arrays} != {len(self.figure)}:
            raise ValueError(f"all fields need {len(self.figure)} entries")

    def strongest(self, k: int) -> "Correlation":
        """Return the k figures with the largest |r|, largest first; those without an r are left out."""
        size = np.abs(self.r.value)
        order = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")
        at = order[np.isfinite(size[order])][:k]
        return replace(
            self,
            figure=tuple(self.figure[i] for i in at),
            axes={name: values[at] for name, values in self.axes.items()},
            n=self.n[at],
            r=Estimate(self.r.value[at], self.r.low[at], self.r.high[at]),
            p_value=self.p_value[at],
            q_value=self.q_value[at],
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per figure."""
        return pd.DataFrame(
            {
                "figure": list(self.figure),
                **self.axes,
                "n": self.n,
                "r": self.r.value,
                "r_low": self.r.low,
                "r_high": self.r.high,
                "p_value": self.p_value,
                "q_value": self.q_value,
            }
        )


def correlate(
    figures: Mapping[str, Float[np.ndarray, "n ..."]],
    number: Float[np.ndarray, " n"],
    *,
    axes: Sequence[str] = (),
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Correlate figures of the examples with a number; arguments as of `compare_groups`.

    Raises:
        UsageError: The shapes do not agree, or n_boot or level makes no sense.
    """
    if n_boot < 1 or not 0 < level < 1:
        raise UsageError(f"n_boot must be 1 or more and level between 0 and 1, got {n_boot} and {level}.")
    values, names, indices = flattened(figures, len(number), axes)
    n, r = _pearson(values, number, np.ones((1, len(number))))
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_pearson(values, number, counts)[1] for counts in draws(len(number), n_boot, rng)])
    low, high = np.where(np.isfinite(r), percentile_interval(drawn, level), np.nan)
    p_value = _p_value(r[0], n[0])
    estimate = Estimate(r[0], low, high)
    return Correlation(
        names, indices, n[0].astype(np.int64), estimate, p_value, false_discovery(p_value), level, len(names)
    )


def _pearson(
    values: Float64[np.ndarray, "n m"], number: Float[np.ndarray, " n"], counts: Float64[np.ndarray, "draw n"]
) -> tuple[Float64[np.ndarray, "draw m"], Float64[np.ndarray, "draw m"]]:
    """Return size and r of every column, each example counted so often in a draw."""
    is_finite = np.isfinite(values)
    present = is_finite.astype(np.float64)
    x = np.where(is_finite, values, 0.0) - present * np.nan_to_num(nan_mean(values, axis=0))
    y = present * (number.astype(np.float64) - number.mean())[:, None]
    size, of_x, of_y = counts @ present, counts @ x, counts @ y
    products = [counts @ (a * b) - divide(s * t, size) for a, b, s, t in
                ((x, x, of_x, of_x), (y, y, of_y, of_y), (x, y, of_x, of_y))]  # fmt: skip
    spread = [np.sqrt(np.maximum(np.nan_to_num(p), 0.0)) for p in products[:2]]
    scale = [np.abs(np.where(is_finite, values, 0.0)).max(0, initial=0.0), np.abs(number).max(initial=0.0)]
    varies = (size >= _FEWEST) & (spread[0] > _ROUNDING * scale[0]) & (spread[1] > _ROUNDING * scale[1])
    r = divide(np.where(varies, products[2], np.nan), np.where(varies, spread[0] * spread[1], 1.0))
    return size, np.clip(r, -1, 1)


def _p_value(r: Float64[np.ndarray, " m"], n: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    from scipy.stats import t

    freedom = np.maximum(n - 2, 1)
    with np.errstate(divide="ignore"):  # r of 1 is infinitely unlikely
        statistic = np.abs(r) * np.sqrt(freedom / (1 - r**2))
    p: np.ndarray = 2 * t.sf(statistic, freedom)
    return p
