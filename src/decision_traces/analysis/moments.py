"""Means, spreads and bootstrap intervals with gaps: what is not finite was not measured, and stays out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64

# Bytes of resampling counts at a time; a matrix product with them is what the bootstrap costs.
_COUNTS_BYTES: Final = 8 << 20
# Spreads below this share of the values are rounding: a constant figure has no spread.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Moments:
    """Size, mean and sum of squared deviations of a group, for each of m figures.

    Attributes:
        size: (..., m) finite members.
        mean: (..., m) NaN where there is none.
        squares: (..., m) sum of squared deviations from the mean; 0 where there is none.
    """

    size: Float64[np.ndarray, "*batch m"]
    mean: Float64[np.ndarray, "*batch m"]
    squares: Float64[np.ndarray, "*batch m"]

    def __post_init__(self) -> None:
        """Check that all fields have one shape."""
        if not self.size.shape == self.mean.shape == self.squares.shape:
            raise ValueError(f"all moments need the shape {self.size.shape}")


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    quotient: np.ndarray = np.divide(above, below, out=np.full(shape, np.nan), where=below != 0)
    return quotient


def nan_mean(values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    """Return the mean of the finite values along an axis, NaN where there is none, in the dtype given."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis, dtype=np.float64)
    mean: np.ndarray = divide(total, finite.sum(axis)).astype(values.dtype)
    return mean


def moments(values: Float64[np.ndarray, "n m"]) -> Moments:
    """Return the moments of the columns."""
    mean, finite = nan_mean(values, axis=0), np.isfinite(values)
    deviation = np.where(finite, values, 0.0) - np.where(finite, mean, 0.0)
    return Moments(finite.sum(0).astype(np.float64), mean, (deviation**2).sum(0))


def resampled(values: Float64[np.ndarray, "n m"], n_boot: int, rng: np.random.Generator) -> Moments:
    """Return the moments of the columns in `n_boot` draws of the n rows with replacement (Efron 1979).

    All columns see the same draws. Members of a column that are not finite are drawn and then left out, so that
    sizes vary as they would in new data. Memory: some (n_boot, m) arrays, and tens of MB for the draws.
    """
    finite = np.isfinite(values)
    present, centre = finite.astype(np.float64), np.nan_to_num(nan_mean(values, axis=0))
    # Around the mean, sums of squares lose no digits.
    deviation = np.where(finite, values, 0.0) - present * centre
    parts: list[list[np.ndarray]] = []
    for counts in draws(len(values), n_boot, rng):
        size, total = counts @ present, counts @ deviation
        mean = divide(total, size)
        parts.append([size, mean + centre, np.maximum(counts @ deviation**2 - total * np.nan_to_num(mean), 0.0)])
    return Moments(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def draws(n: int, n_boot: int, rng: np.random.Generator) -> Iterator[Float64[np.ndarray, "some n"]]:
    """Yield how often each of n members is drawn, some draws at a time."""
    step = max(1, _COUNTS_BYTES // (8 * max(1, n)))
    for start in range(0, n_boot, step):
        some = min(step, n_boot - start)
        if n == 0:
            yield np.zeros((some, 0))
            continue
        drawn = rng.integers(n, size=(some, n)) + np.arange(some)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=some * n).reshape(some, n).astype(np.float64)


def standardised(first: Moments, second: Moments, scale: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "*batch m"]:
    """Return Cohen's d: the difference of two means over their pooled standard deviation (Cohen 1988).

    Args:
        first: One group.
        second: The other.
        scale: Largest absolute value of each figure, to tell a spread from rounding.

    Returns:
        NaN where a group has fewer than two members, or nothing varies.
    """
    enough = (first.size > 1) & (second.size > 1)
    variance = divide(first.squares + second.squares, np.where(enough, first.size + second.size - 2, 0))
    sd = np.sqrt(variance)
    return divide(first.mean - second.mean, np.where(sd > _ROUNDING * scale, sd, 0.0))


def percentile_interval(draws: Float64[np.ndarray, "n_boot m"], level: float) -> Float64[np.ndarray, "2 m"]:
    """Return the middle `level` of the finite draws of each column, NaN where there is none."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    bounds: np.ndarray = np.quantile(draws, ends, axis=0)  # NaN in, NaN out
    some = np.isfinite(draws)
    for column in np.flatnonzero(some.any(0) & ~some.all(0)):
        bounds[:, column] = np.quantile(draws[some[:, column], column], ends)
    return bounds
