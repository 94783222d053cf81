"""The picture of a benchmark: how many times a bare forward pass each contender takes."""

from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.task import SETS
from benchmarks.results import LIMIT, Results, Row
from decision_traces.viz.style import BLUE, GREY, INK, new_figure, plain, save

_WIDTH: Final = 6.2  # inches at 130 dots: 806 pixels
_BAR: Final = 0.27
_PANEL: Final = 0.62
_EXACT: Final = 2  # below it, hundredths are shown


def save_ratios(results: Results, path: Path) -> Path:
    """Draw a panel of horizontal bars for each set of captures and save it as PNG.

    Args:
        results: With rounds of the bare forward pass among them.
        path: The picture's file; its folder is made.
    """
    captures = [c for c in results.captures() if any(row.ratio for row in _bars(results, c))]
    names = [n for n in CONTENDERS if any(n == row.contender for c in captures for row in _bars(results, c))]
    height = len(captures) * (_PANEL + _BAR * len(names)) + 0.5
    figure = new_figure(_WIDTH, height)
    axes = figure.subplots(len(captures), 1, sharex=True, squeeze=False)[:, 0]
    for axis, capture in zip(axes, captures, strict=True):
        _draw(axis, capture, {row.contender: row for row in _bars(results, capture)}, names)
        axis.set_xlabel("")
    axes[0].set_xlim(0, 1.12 * max(row.ratio.most for c in captures for row in _bars(results, c) if row.ratio))
    axes[-1].set_xlabel("time over a bare forward pass (1 = nothing captured, nothing written)", fontsize=9, color=INK)
    return save(figure, path, f"Tracing {results.model}: {results.n_examples} texts, every array on disk")


def _bars(results: Results, capture: str) -> list[Row]:
    return [row for row in results.rows(capture) if row.contender != LIMIT and row.ratio]


def _draw(axis: Any, capture: str, rows: dict[str, Row], names: list[str]) -> None:
    plain(axis, f"--capture {' '.join(SETS[capture])}", "", "", grid="x")
    for place, name in enumerate(names):
        row = rows.get(name)
        if row is None or row.ratio is None:
            axis.text(1, place, " not possible", va="center", fontsize=8, color=GREY)
            continue
        ratio = row.ratio
        axis.barh(place, ratio.median, height=0.68, color=BLUE if name == "ours" else GREY)
        spread = [[ratio.median - ratio.least], [ratio.most - ratio.median]]
        axis.errorbar(ratio.median, place, xerr=spread, color=INK, linewidth=1, capsize=2)
        weight = "bold" if name == "ours" else "normal"
        axis.annotate(
            f"{ratio.median:.2f}×" if ratio.median < _EXACT else f"{ratio.median:.1f}×",
            (ratio.most, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight=weight,
            color=INK,
        )
    axis.axvline(1, color=INK, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(names)), [CONTENDERS[name].about.title for name in names], fontsize=9)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
