"""A picture of direct logit attribution: which parts of the model push the true token ahead, and which hold it back."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from decision_traces.analysis.results import Attribution
from decision_traces.viz.groups import Group, add_legend, draw_bands, grouped
from decision_traces.viz.style import GREY, INK, as_written, new_figure, plain, save

_DIVERGING: Final = "RdBu"  # told apart by colour-blind readers; blue, as "right", is above zero
_UNIT: Final = "logits towards the target"


@as_written()
def save_attribution(result: Attribution, path: Path, title: str) -> Path:
    """Draw what each part of the model adds to the lead of the target over its competitor, and save it as PNG.

    The lead as it grows through the model (median and middle half), the mean contribution of attention and of the
    MLP in each layer, and where attention was split by head, a map of all heads' means.

    Args:
        result: The attribution.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    groups = grouped(result.correct, result.known)
    panels = 3 if result.heads is None else 4
    figure = new_figure(11.0, 7.2) if panels == 4 else new_figure(13.0, 4.2)
    axes = figure.subplots(2, 2).ravel() if panels == 4 else figure.subplots(1, 3)
    _draw_running(axes[0], result, groups)
    low, high = _reach(result, groups)
    for axis, name, values in ((axes[1], "Attention", result.attn), (axes[2], "MLP", result.mlp)):
        _draw_bars(axis, values, groups)
        plain(axis, f"{name}, layer by layer", "layer", f"mean contribution ({_UNIT})")
        axis.set_ylim(low, high)
    if result.heads is not None:
        _draw_heads(figure, axes[3], result.heads.mean(0))
    add_legend(figure, axes[0], axes[1])
    return save(figure, path, title)


def _draw_running(axis: Any, result: Attribution, groups: list[tuple[Group, np.ndarray]]) -> None:
    across = np.arange(2 * result.n_layers + 1) / 2
    draw_bands(axis, across, result.running(), groups)
    axis.axhline(0, color=GREY, linewidth=1)
    plain(axis, "The lead as it grows", "layers passed (half: after attention)", f"sum so far ({_UNIT})")
    axis.set_xlim(0, result.n_layers)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _reach(result: Attribution, groups: list[tuple[Group, np.ndarray]]) -> tuple[float, float]:
    """Return common limits for the bars of attention and MLP, so that they can be compared."""
    means = np.concatenate([values[mask].mean(0) for _, mask in groups for values in (result.attn, result.mlp)])
    low, high = min(0.0, float(means.min())), max(0.0, float(means.max()))
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _draw_bars(axis: Any, values: np.ndarray, groups: list[tuple[Group, np.ndarray]]) -> None:
    layers, width = np.arange(values.shape[1]), 0.8 / len(groups)
    for i, (group, mask) in enumerate(groups):
        at = layers - 0.4 + width * (i + 0.5)
        hatch = None if group.dash == "-" else "////"
        axis.bar(at, values[mask].mean(0), width, color=group.colour, hatch=hatch, edgecolor="white",
                 label=f"{group.name}: mean")  # fmt: skip
    axis.axhline(0, color=GREY, linewidth=1)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_heads(figure: Any, axis: Any, means: np.ndarray) -> None:
    reach = float(np.abs(means).max()) or 1.0
    image = axis.imshow(means, origin="lower", aspect="auto", cmap=_DIVERGING, vmin=-reach, vmax=reach)
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.set_label(f"mean ({_UNIT})", color=INK, fontsize=8)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.outline.set_visible(False)
    plain(axis, "Attention, head by head (all examples)", "head", "layer", grid="both")
    axis.grid(visible=False)
    for run in (axis.xaxis, axis.yaxis):
        run.get_major_locator().set_params(integer=True)
