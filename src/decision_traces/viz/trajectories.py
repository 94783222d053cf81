"""A picture of lens trajectories: how certainty grows from layer to layer, for right and for wrong predictions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from decision_traces.analysis.results import DecisionDepth, LensTrajectories
from decision_traces.viz.groups import Group, add_legend, draw_bands, grouped
from decision_traces.viz.style import GREY, as_written, new_figure, plain, save

_ACROSS = "layer (0 = embedding)"


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    unit: str
    values: Float[np.ndarray, "n depth"]
    top: float | None = None
    signed: bool = False


@as_written()
def save_trajectories(lens: LensTrajectories, depth: DecisionDepth, path: Path, title: str) -> Path:
    """Draw the lens trajectories of a run and save them as PNG.

    Six panels over the layers: the probability of the model's prediction at the end, the probability of the actual
    token, the lead of the target (the actual token; where it is not known, the predicted one) over its competitor,
    the entropy, how far the distribution is from the final one, and the share of decisions that stand. Lines are
    medians, bands the middle half of the examples.

    Args:
        lens: The trajectories.
        depth: The decisions they lead to.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    target = np.where(lens.known[:, None], lens.true.logit, lens.pred.logit)
    panels = [
        _Panel("What it will say", "probability of the final prediction", lens.pred.prob, 1.0),
        _Panel("What is true", "probability of the actual token", lens.true.prob, 1.0),
        _Panel(
            "Target against its competitor", "lead of the target (logits)", target - lens.competitor.logit, signed=True
        ),
        _Panel("How unsure it is", "entropy (nats)", lens.entropy),
        _Panel("How far from the end", "KL to the final distribution (nats)", np.maximum(lens.kl_to_final, 0)),
    ]
    figure = new_figure(12.0, 7.0)
    axes = figure.subplots(2, 3).ravel()
    groups = grouped(lens.correct, lens.known)
    for axis, panel in zip(axes, panels, strict=False):
        draw_bands(axis, lens.depth, panel.values, groups)
        _finish(axis, panel, lens.depth)
    _draw_stable(axes[5], depth, grouped(depth.correct, depth.known))
    add_legend(figure, axes[0])
    return save(figure, path, title)


def _draw_stable(axis: Any, depth: DecisionDepth, groups: list[tuple[Group, np.ndarray]]) -> None:
    layers = np.arange(depth.n_layers + 1)
    for group, mask in groups:
        share = (depth.stable_from[mask][:, None] <= layers).mean(0)
        axis.plot(layers, share, group.dash, color=group.colour, linewidth=2, drawstyle="steps-post")
    _finish(
        axis, _Panel("When it is settled", "share of decisions that no longer change", np.empty((0, 0)), 1.0), layers
    )


def _finish(axis: Any, panel: _Panel, layers: np.ndarray) -> None:
    plain(axis, panel.title, _ACROSS, panel.unit)
    axis.set_xlim(layers[0], layers[-1])
    if panel.signed:
        axis.axhline(0, color=GREY, linewidth=1)
    else:
        axis.set_ylim(0, None if panel.top is None else panel.top * 1.03)
    axis.xaxis.get_major_locator().set_params(integer=True)
