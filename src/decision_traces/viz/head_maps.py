"""A picture of what every attention head looks at: one map of layers and heads per figure."""

from pathlib import Path
from typing import Any

import numpy as np

from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES
from decision_traces.analysis.attention.statistics import HeadMeans
from decision_traces.viz.style import INK, LABELS, MAP_COLOURS, as_written, new_figure, save

_COLUMNS = 3


@as_written()
def save_head_maps(heads: HeadMeans, path: Path, title: str) -> Path:
    """Draw the figures of all heads as maps, the first layer at the bottom, and save them as PNG.

    Masses are drawn from 0 to the largest head, entropy and distance likewise; a map's colour bar has its unit.
    Heads that no example could measure stay white.

    Args:
        heads: Means over a run.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    side = float(np.clip(heads.values.shape[1] * 0.22, 1.6, 6.0))
    rows = -(-len(ATTENTION_FIGURES) // _COLUMNS)
    figure = new_figure(12.0, rows * (side + 0.9) + 0.4)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis, name in zip(axes, ATTENTION_FIGURES, strict=False):
        _draw(figure, axis, name, heads.figure(name))
    for axis in axes[len(ATTENTION_FIGURES) :]:
        axis.set_visible(False)
    return save(figure, path, title)


def _draw(figure: Any, axis: Any, name: str, values: np.ndarray) -> None:
    label, unit = LABELS[name]
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    image = axis.imshow(values, origin="lower", aspect="auto", cmap=MAP_COLOURS, vmin=0, vmax=top)
    bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=30)
    bar.set_label(unit, color=INK, fontsize=8)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.outline.set_visible(False)
    axis.set_title(label, loc="left", fontsize=10, color=INK)
    axis.set_xlabel("head", color=INK, fontsize=9)
    axis.set_ylabel("layer", color=INK, fontsize=9)
    axis.tick_params(colors=INK, labelsize=8, length=0)
    for run in (axis.xaxis, axis.yaxis):
        run.get_major_locator().set_params(integer=True)
    axis.spines[:].set_visible(False)
