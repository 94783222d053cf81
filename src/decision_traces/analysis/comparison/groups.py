"""Right against wrong: how any figure of the examples differs between right and wrong answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64

from decision_traces.analysis.moments import moments, percentile_interval, resampled, standardised
from decision_traces.errors import UsageError

_FIGURES_AT_ONCE: Final = 256
_EXACT_UP_TO: Final = 8  # members of the smaller group; beyond it the normal approximation is as good


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its bootstrap interval.

    Attributes:
        value: (m,) the estimate.
        low: (m,) lower end of the interval.
        high: (m,) upper end.
    """

    value: Float64[np.ndarray, " m"]
    low: Float64[np.ndarray, " m"]
    high: Float64[np.ndarray, " m"]

    def __post_init__(self) -> None:
        """Check that all fields have one shape."""
        if not self.value.shape == self.low.shape == self.high.shape:
            raise ValueError(f"an estimate and its ends need one shape, got {self.value.shape} and {self.low.shape}")


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """How m figures differ between right and wrong answers.

    Attributes:
        figure: (m,) what is compared.
        axes: Where in the model, (m,) each: `layer` and `head`, or `depth`, or nothing.
        n_right: (m,) right examples in which the figure is finite.
        n_wrong: (m,) wrong ones.
        right: Mean over the right; its interval is NaN below two members, the mean where there is none.
        wrong: The same over the wrong.
        difference: Mean of right minus mean of wrong.
        cohen_d: The difference over the pooled standard deviation (Cohen 1988).
        auroc: (m,) probability that a random right example has the larger value, ties counted half.
        p_value: (m,) two-sided Mann-Whitney U test (1947); exact for small groups without ties.
        q_value: (m,) the same after Benjamini & Hochberg (1995) over all figures compared together: the share of
            false finds to expect among figures with a q up to this one.
        level: Of the intervals.
        n_compared: Figures compared together, which may be more than are kept here.
        groups: What the two groups are called, where they are others than right and wrong.

    Difference, d, AUROC, p and q are NaN where a group has fewer than two members.
    """

    figure: tuple[str, ...]
    axes: Mapping[str, Int64[np.ndarray, " m"]]
    n_right: Int64[np.ndarray, " m"]
    n_wrong: Int64[np.ndarray, " m"]
    right: Estimate
    wrong: Estimate
    difference: Estimate
    cohen_d: Estimate
    auroc: Float64[np.ndarray, " m"]
    p_value: Float64[np.ndarray, " m"]
    q_value: Float64[np.ndarray, " m"]
    level: float
    n_compared: int
    groups: tuple[str, str] = ("right", "wrong")

    def __post_init__(self) -> None:
        """Check that all fields speak of the same figures."""
        arrays = [self.n_right, self.n_wrong, self.auroc, self.p_value, self.q_value, *self.axes.values()]
        arrays += [e.value for e in (self.right, self.wrong, self.difference, self.cohen_d)]
        if {len(a) for a in arrays} != {len(self.figure)}:
            raise ValueError(f"all fields need {len(self.figure)} entries")

    def take(self, which: Sequence[int] | Int64[np.ndarray, " k"]) -> "GroupComparison":
        """Return some of the figures, in the order given."""
        at = np.asarray(which, dtype=np.int64)
        changed: dict[str, object] = {"figure": tuple(self.figure[i] for i in at)}
        changed["axes"] = {name: values[at] for name, values in self.axes.items()}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Estimate):
                changed[name] = Estimate(value.value[at], value.low[at], value.high[at])
            elif isinstance(value, np.ndarray):
                changed[name] = value[at]
        return replace(self, **changed)  # type: ignore[arg-type]

    def strongest(self, k: int) -> "GroupComparison":
        """Return the k figures with the largest |d|, largest first; those without a d are left out."""
        size = np.abs(self.cohen_d.value)
        order = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")
        return self.take([int(i) for i in order if np.isfinite(size[i])][:k])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per figure; `<estimate>_low` and `<estimate>_high` beside each estimate.

        Of other groups than right and wrong, their names stand in `group` and `against`, and columns are `n_group`,
        `n_against`, `mean_group` and `mean_against`.
        """
        columns: dict[str, object] = {"figure": list(self.figure), **self.axes}
        called = {"right": "right", "wrong": "wrong"}
        if self.groups != ("right", "wrong"):
            columns |= {"group": self.groups[0], "against": self.groups[1]}
            called = {"right": "group", "wrong": "against"}
        columns |= {f"n_{called['right']}": self.n_right, f"n_{called['wrong']}": self.n_wrong}
        for name in ("right", "wrong", "difference", "cohen_d"):
            estimate, column = getattr(self, name), f"mean_{called[name]}" if name in called else name
            columns |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
        return pd.DataFrame(columns | {name: getattr(self, name) for name in ("auroc", "p_value", "q_value")})


def compare_groups(
    figures: Mapping[str, Float[np.ndarray, "n ..."]],
    correct: Bool[np.ndarray, " n"],
    *,
    axes: Sequence[str] = (),
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    groups: tuple[str, str] = ("right", "wrong"),
) -> GroupComparison:
    """Compare figures of right and wrong examples, or of any two groups.

    Intervals are percentile bootstrap intervals (Efron 1979): right and wrong examples are drawn apart, each group
    with its own size. Memory: the figures in float64, some (n_boot, 256) arrays, and tens of MB for the draws.

    Args:
        figures: Name to values, one per example, (n,), or (n, depth), (n, layer, head) and the like. What is not
            finite is left out of that figure only.
        correct: (n,) whether the example is right; of any two groups, whether it is in the first.
        axes: Names of the axes after the first, the same for all figures.
        n_boot: Bootstrap draws.
        level: Of the intervals.
        seed: Of the draws.
        groups: What the two groups are called.

    Raises:
        UsageError: The shapes do not agree, or n_boot or level makes no sense.
    """
    values, names, indices = flattened(figures, len(correct), axes)
    return replace(_compare(values, correct, names, indices, (n_boot, level, seed)), groups=groups)


def flattened(
    figures: Mapping[str, Float[np.ndarray, "n ..."]], n: int, axes: Sequence[str]
) -> tuple[Float64[np.ndarray, "n m"], tuple[str, ...], dict[str, Int64[np.ndarray, " m"]]]:
    """Return figures of n examples as columns, with the name of each and its index on the axes.

    Raises:
        UsageError: Their shapes do not agree.
    """
    shapes = {values.shape for values in figures.values()}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 1 + len(axes) or shape[0] != n:
        raise UsageError(f"Figures of {n} examples with axes {tuple(axes)} cannot have shapes {shapes}.")
    size = math.prod(shape[1:])
    at = np.indices(shape[1:]).reshape(len(axes), size)
    columns = np.concatenate([v.reshape(n, size) for v in figures.values()], axis=1).astype(np.float64)
    names = tuple(name for name in figures for _ in range(size))
    return columns, names, {axis: np.tile(at[i], len(figures)) for i, axis in enumerate(axes)}


def compare_frame(
    frame: pd.DataFrame,
    figures: Sequence[str],
    *,
    axes: Sequence[str] = (),
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> GroupComparison:
    """Compare columns of a table in long form; see `compare_groups`.

    Args:
        frame: Columns `example_id`, `correct`, the axes and the figures; one row per example and index on the
            axes. Rows whose `correct` is null are left out.
        figures: Columns to compare.
        axes: Columns that say where in the model a row belongs: `depth`, or `layer` and `head`.
        n_boot: Bootstrap draws.
        level: Of the intervals.
        seed: Of the draws.

    Raises:
        UsageError: A column is missing, or an example has two rows for one index.
    """
    if missing := [c for c in ("example_id", "correct", *axes, *figures) if c not in frame]:
        raise UsageError(f"The table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}.")
    answered = frame[frame["correct"].notna()]
    if answered.duplicated(["example_id", *axes]).any():
        raise UsageError(f"An example has two rows with the same {' and '.join(['example_id', *axes])}.")
    truth = answered.groupby("example_id", sort=False)["correct"].first().astype(bool)
    blocks: list[np.ndarray] = []
    names: list[str] = []
    indices: list[tuple[int, ...]] = []
    for name in figures:
        wide = answered.set_index(["example_id", *axes])[name]
        table = wide.unstack(list(axes)) if axes else wide.to_frame()  # noqa: PD010 (pivot sorts examples)
        blocks.append(table.reindex(truth.index).to_numpy(dtype=np.float64, na_value=np.nan))
        names += [name] * table.shape[1]
        indices += list(table.columns.to_frame(index=False).itertuples(index=False, name=None)) if axes else [()]
    return _compare(
        np.concatenate(blocks, axis=1),
        truth.to_numpy(dtype=bool),
        tuple(names),
        {axis: np.array([index[i] for index in indices], np.int64) for i, axis in enumerate(axes)},
        (n_boot, level, seed),
    )


def _compare(
    values: Float64[np.ndarray, "n m"],
    correct: Bool[np.ndarray, " n"],
    figure: tuple[str, ...],
    axes: Mapping[str, Int64[np.ndarray, " m"]],
    options: tuple[int, float, int],
) -> GroupComparison:
    """Compare the columns, some at a time; every part sees the same draws, so that parts do not matter."""
    n_boot, level, seed = options
    if n_boot < 1 or not 0 < level < 1:
        raise UsageError(f"n_boot must be 1 or more and level between 0 and 1, got {n_boot} and {level}.")
    parts = [
        _compare_part(values[:, start : start + _FIGURES_AT_ONCE], correct, n_boot, level, seed)
        for start in range(0, max(1, values.shape[1]), _FIGURES_AT_ONCE)
    ]
    joined = {name: np.concatenate([p[name] for p in parts], axis=-1) for name in parts[0]}
    estimates = {name: Estimate(*joined[name]) for name in ("right", "wrong", "difference", "cohen_d")}
    return GroupComparison(
        figure=figure,
        axes=axes,
        n_right=joined["n_right"].astype(np.int64),
        n_wrong=joined["n_wrong"].astype(np.int64),
        auroc=joined["auroc"],
        p_value=joined["p_value"],
        q_value=false_discovery(joined["p_value"]),
        level=level,
        n_compared=len(figure),
        right=estimates["right"],
        wrong=estimates["wrong"],
        difference=estimates["difference"],
        cohen_d=estimates["cohen_d"],
    )


def _compare_part(
    values: Float64[np.ndarray, "n m"], correct: Bool[np.ndarray, " n"], n_boot: int, level: float, seed: int
) -> dict[str, np.ndarray]:
    groups = [values[correct], values[~correct]]
    right, wrong = map(moments, groups)
    scale = np.abs(np.where(np.isfinite(values), values, 0.0)).max(0, initial=0.0)
    enough = (right.size > 1) & (wrong.size > 1)
    seeds = np.random.SeedSequence(seed).spawn(2)
    drawn = [resampled(g, n_boot, np.random.default_rng(s)) for g, s in zip(groups, seeds, strict=True)]
    auroc, p_value = _rank_test(groups[0], groups[1], enough)

    def estimate(value: np.ndarray, draws: np.ndarray, possible: np.ndarray) -> np.ndarray:
        bounds = np.where(possible, percentile_interval(draws, level), np.nan)
        return np.vstack([value, bounds])

    difference = np.where(enough, right.mean - wrong.mean, np.nan)
    return {
        "right": estimate(right.mean, drawn[0].mean, right.size > 1),
        "wrong": estimate(wrong.mean, drawn[1].mean, wrong.size > 1),
        "difference": estimate(difference, drawn[0].mean - drawn[1].mean, enough),
        "cohen_d": estimate(standardised(right, wrong, scale), standardised(drawn[0], drawn[1], scale), enough),
        "auroc": auroc,
        "p_value": p_value,
        "n_right": right.size,
        "n_wrong": wrong.size,
    }


def _rank_test(
    right: Float64[np.ndarray, "n_right m"], wrong: Float64[np.ndarray, "n_wrong m"], enough: Bool[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Return AUROC = U / (n_right n_wrong) and the p-value of U, column by column where there are gaps."""
    from scipy.stats import mannwhitneyu

    auroc, p_value = np.full((2, right.shape[1]), np.nan)
    gapless = np.isfinite(right).all(0) & np.isfinite(wrong).all(0)
    exact = _is_exact(right, wrong)
    blocks = [np.flatnonzero(enough & gapless & (exact == e)) for e in (True, False)]
    for columns in (*blocks, *np.flatnonzero(enough & ~gapless)[:, None]):
        if len(columns) == 0:
            continue
        # A block has no gaps and a column with gaps is a block of its own: dropping rows drops that column's gaps only.
        a, b = (g[np.isfinite(g[:, columns]).all(1)][:, columns] for g in (right, wrong))
        test = mannwhitneyu(a, b, axis=0, method="exact" if exact[columns[0]] else "asymptotic")
        auroc[columns], p_value[columns] = test.statistic / (len(a) * len(b)), test.pvalue
    return auroc, p_value


def _is_exact(
    right: Float64[np.ndarray, "n_right m"], wrong: Float64[np.ndarray, "n_wrong m"]
) -> Bool[np.ndarray, " m"]:
    """Return where the exact distribution of U is due: a small group and no ties, decided for each column by itself."""
    ordered = np.sort(np.concatenate([right, wrong]), axis=0)
    tied = (np.diff(ordered, axis=0) == 0).any(0)
    small = np.minimum(np.isfinite(right).sum(0), np.isfinite(wrong).sum(0)) <= _EXACT_UP_TO
    exact: np.ndarray = small & ~tied
    return exact


def false_discovery(p_value: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Return p-values after Benjamini & Hochberg (1995), over those that are not NaN."""
    from scipy.stats import false_discovery_control

    tested, q_value = np.isfinite(p_value), np.full(p_value.shape, np.nan)
    if tested.any():
        q_value[tested] = false_discovery_control(p_value[tested])
    return q_value
