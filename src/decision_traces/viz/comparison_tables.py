"""Right against wrong, probes, calibration and heads as tables for the terminal."""

import numpy as np
from rich.table import Table

from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES
from decision_traces.analysis.attention.statistics import HeadMeans
from decision_traces.analysis.comparison.calibration import Calibration
from decision_traces.analysis.comparison.correlation import Correlation
from decision_traces.analysis.comparison.groups import Estimate, GroupComparison
from decision_traces.analysis.probing.correctness import ProbeResult
from decision_traces.analysis.probing.label import LabelProbe
from decision_traces.viz.style import label_of

_NONE = "–"


def comparison_table(comparison: GroupComparison, title: str) -> Table:
    """Return one row per figure: both means, their difference with its interval, d, AUROC and q."""
    table = Table(title=title, title_justify="left")
    sizes = [n.max(initial=0) for n in (comparison.n_right, comparison.n_wrong)]
    where = ["/".join(comparison.axes)] if comparison.axes else []
    for heading in ("figure", *where):
        table.add_column(heading, no_wrap=True)
    called = [f"{name} ({size})" for name, size in zip(comparison.groups, sizes, strict=True)]
    for heading in (*called, "difference", "d", "AUROC", "q"):
        table.add_column(heading, justify="right", no_wrap=heading != "difference")
    for i, name in enumerate(comparison.figure):
        table.add_row(
            label_of(name),
            *["/".join(str(at[i]) for at in comparison.axes.values()) for _ in where],
            *(_number(e.value[i]) for e in (comparison.right, comparison.wrong)),
            _estimate(comparison.difference, i),
            _number(comparison.cohen_d.value[i], ".2f"),
            _number(comparison.auroc[i], ".2f"),
            _number(comparison.q_value[i], ".2g"),
        )
    table.caption = (
        f"means; [{comparison.level:.0%} bootstrap interval]; d: Cohen's; q: Mann-Whitney, Benjamini-Hochberg over "
        f"{comparison.n_compared} figures"
    )
    table.caption_justify = "left"
    return table


def correlation_table(correlation: Correlation, title: str) -> Table:
    """Return one row per figure: its correlation with the number, with its interval, and q."""
    table = Table(title=title, title_justify="left")
    where = ["/".join(correlation.axes)] if correlation.axes else []
    for heading in ("figure", *where):
        table.add_column(heading, no_wrap=True)
    for heading in ("examples", "r", "q"):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, name in enumerate(correlation.figure):
        table.add_row(
            label_of(name),
            *["/".join(str(at[i]) for at in correlation.axes.values()) for _ in where],
            str(correlation.n[i]),
            _estimate(correlation.r, i),
            _number(correlation.q_value[i], ".2g"),
        )
    table.caption = (
        f"Pearson's r; [{correlation.level:.0%} bootstrap interval]; q: Student's t, Benjamini-Hochberg over "
        f"{correlation.n_compared} figures"
    )
    table.caption_justify = "left"
    return table


def label_probe_table(probe: LabelProbe) -> Table:
    """Return one row per depth: the probe's score and the control's, mean ± SD over folds."""
    sizes = ", ".join(f"{n} {name}" for name, n in probe.sizes.items())
    table = Table(title=f"Probe of {probe.label}: {sizes}", title_justify="left")
    for heading in ("layer", probe.measure, "shuffled"):
        table.add_column(heading, justify="right")
    for depth, (score, control) in enumerate(zip(probe.score, probe.control, strict=True)):
        table.add_row(str(depth), *(f"{s.mean():.3f} ± {s.std(ddof=1):.3f}" for s in (score, control)))
    table.caption = f"layer 0: embedding; {probe.chance:.3g}: chance, as of always saying the commonest, or the mean"
    table.caption_justify = "left"
    return table


def probe_table(probe: ProbeResult) -> Table:
    """Return one row per depth: the probe's scores and the control's, mean ± SD over folds."""
    table = Table(title=f"Probe of correctness: {probe.n_right} right, {probe.n_wrong} wrong", title_justify="left")
    for heading in ("layer", "AUROC", "shuffled", "balanced accuracy", "shuffled"):
        table.add_column(heading, justify="right")
    scores = ("auroc", "control_auroc", "balanced_accuracy", "control_balanced_accuracy")
    columns = [list(zip(probe.mean(score), probe.sd(score), strict=True)) for score in scores]
    for depth, row in enumerate(zip(*columns, strict=True)):
        table.add_row(str(depth), *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in row))
    table.caption = "layer 0: embedding; 0.5: chance; with few of a class shuffled labels may fall below it"
    table.caption_justify = "left"
    return table


def calibration_table(calibration: Calibration) -> Table:
    """Return one row per bin that holds answers."""
    table = Table(title="Calibration of the final answer", title_justify="left")
    for heading in ("confidence", "answers", "mean confidence", "share right", "95 % interval"):
        table.add_column(heading, justify="right")
    c = calibration
    for i in np.flatnonzero(c.n_examples):
        table.add_row(
            f"{c.edges[i]:.2g} to {c.edges[i + 1]:.2g}",
            str(c.n_examples[i]),
            f"{c.confidence[i]:.3f}",
            f"{c.accuracy[i]:.3f}",
            f"{c.accuracy_low[i]:.3f} to {c.accuracy_high[i]:.3f}",
        )
    table.caption = (
        f"ECE {c.ece:.3f}, Brier {c.brier:.3f}; mean confidence {c.mean_confidence:.3f}, "
        f"share right {c.mean_accuracy:.3f}"
    )
    table.caption_justify = "left"
    return table


def head_table(heads: HeadMeans, most: int = 40) -> Table:
    """Return one row per head; of models with more heads those that lead in one of the figures.

    Args:
        heads: Means over a run.
        most: Rows to show.
    """
    n_layers, n_heads = heads.values.shape[1:]
    shown = _leaders(heads, most)
    table = Table(title=f"{len(shown)} of {n_layers * n_heads} heads: means over the run", title_justify="left")
    for heading in ("layer", "head", *map(label_of, ATTENTION_FIGURES)):
        table.add_column(heading, justify="right")
    for layer, head in shown:
        cells = [_number(heads.figure(name)[layer, head]) for name in ATTENTION_FIGURES]
        table.add_row(str(layer), str(head), *cells)
    return table


def _leaders(heads: HeadMeans, most: int) -> list[tuple[int, int]]:
    """Return the heads to show in the order of the model: first, second, ... of every figure until there are enough."""
    flat = np.nan_to_num(heads.values.reshape(len(ATTENTION_FIGURES), -1), nan=-1.0)
    ranked = np.argsort(-flat, axis=1, kind="stable").T.ravel()
    chosen = list(dict.fromkeys(ranked.tolist()))[:most]
    return [divmod(int(i), heads.values.shape[2]) for i in sorted(chosen)]


def _estimate(estimate: Estimate, i: int) -> str:
    value, low, high = (e[i] for e in (estimate.value, estimate.low, estimate.high))
    if not np.isfinite(value):
        return _NONE
    return _number(value) if not np.isfinite(low) else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | np.floating, form: str = ".3g") -> str:
    return format(value, form) if np.isfinite(value) else _NONE
