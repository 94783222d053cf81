"""A forest plot: how far right and wrong answers differ in each figure, in standard deviations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from decision_traces.analysis.comparison.groups import GroupComparison
from decision_traces.viz.style import BLUE, GREY, INK, LINES, VERMILION, as_written, label, label_of, new_figure, save

_GROUP_NAME: Final = 24


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    d: float
    low: float
    high: float
    means: str


@as_written()
def save_forest(sections: Mapping[str, GroupComparison], path: Path, title: str) -> Path:
    """Draw Cohen's d of every figure with its interval, section under section, and save them as PNG.

    Figures of different units share one axis because d has none; the means in their own units stand at the right.
    Blue dots: larger where the answer is right; vermilion squares: larger where it is wrong. Hollow marks have an
    interval that holds 0. Figures without a d are left out.

    Args:
        sections: Heading to comparison.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    parts = {heading: _rows(comparison) for heading, comparison in sections.items()}
    lines = sum(len(rows) + 1.4 for rows in parts.values() if rows)
    figure = new_figure(10.0, 1.5 + 0.27 * max(lines, 3))
    axis = figure.subplots()
    y, ticks, names = 0.0, [], []
    for heading, rows in parts.items():
        if not rows:
            continue
        axis.annotate(label(heading), (0, -y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=9, fontweight="bold", color=INK)  # fmt: skip
        y += 1
        for row in rows:
            _mark(axis, row, -y)
            ticks.append(-y)
            names.append(row.label)
            y += 1
        y += 0.4
    pairs = {c.groups for c in sections.values()}
    first, second = (label(g, _GROUP_NAME) for g in (pairs.pop() if len(pairs) == 1 else ("the group", "the rest")))
    _finish(axis, ticks, names, y, next((c.level for c in sections.values()), 0.95), first, second)
    return save(figure, path, title)


def _rows(comparison: GroupComparison) -> list[_Row]:
    d, (right, wrong) = comparison.cohen_d, (comparison.right.value, comparison.wrong.value)
    return [
        _Row(
            label=", ".join([label_of(name), *(f"{axis} {at[i]}" for axis, at in comparison.axes.items())]),
            d=float(d.value[i]),
            low=float(d.low[i]),
            high=float(d.high[i]),
            means=f"{right[i]:.3g}  |  {wrong[i]:.3g}",
        )
        for i, name in enumerate(comparison.figure)
        if np.isfinite(d.value[i])
    ]


def _mark(axis: Any, row: _Row, y: float) -> None:
    colour, shape = (BLUE, "o") if row.d > 0 else (VERMILION, "s")
    sure = row.low > 0 or row.high < 0
    axis.plot([row.low, row.high], [y, y], color=colour, linewidth=1.8, alpha=1.0 if sure else 0.55)
    axis.plot(row.d, y, shape, color=colour, markersize=6, markerfacecolor=colour if sure else "white")
    axis.annotate(row.means, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)


def _finish(
    axis: Any, ticks: list[float], names: list[str], depth: float, level: float, first: str, second: str
) -> None:
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(ticks, [label(name) for name in names])
    axis.set_ylim(-depth + 0.2, 1.2)
    reach = max([1.0, *np.abs(axis.get_xlim())])
    axis.set_xlim(-reach, reach)
    axis.annotate(f"means: {first} | {second}", (1.01, 0.6), xycoords=("axes fraction", "data"), fontsize=8, color=GREY)
    axis.annotate(
        f"larger where {second} ←", (0.01, 0.6), xycoords=("axes fraction", "data"), fontsize=8, color=VERMILION
    )
    axis.annotate(f"→ larger where {first}", (0.99, 0.6), xycoords=("axes fraction", "data"), ha="right", fontsize=8,
                  color=BLUE)  # fmt: skip
    axis.set_xlabel(f"Cohen's d (standard deviations), {level:.0%} bootstrap interval", color=INK, fontsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=8, length=0)
    axis.grid(axis="x", color=LINES, linewidth=0.8)
    axis.set_axisbelow(True)
