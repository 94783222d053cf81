"""A picture of lens trajectories: how certainty grows from layer to layer, for right and for wrong predictions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int

from decision_traces.analysis.results import DecisionDepth, LensTrajectories

# Okabe & Ito's colour-blind safe blue and vermilion; the dash makes the difference without colour.
_GROUPS: Final = {True: ("right", "#0072B2", "-"), False: ("wrong", "#D55E00", "--")}
_INK: Final = "#333333"


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    unit: str
    values: Float[np.ndarray, "n depth"]
    top: float | None = None


def save_trajectories(lens: LensTrajectories, depth: DecisionDepth, path: Path, title: str) -> Path:
    """Draw the lens trajectories of a run and save them as PNG.

    Four panels over the layers: the probability of what the model says in the end, the probability of the
    actual token, the entropy, and the share of decisions that stand. Lines are medians, bands the middle half
    of the examples.

    Args:
        lens: The trajectories.
        depth: The decisions they lead to.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        _Panel("What it will say", "probability of the final prediction", lens.final_prob, 1.0),
        _Panel("What is true", "probability of the actual token", lens.true_prob, 1.0),
        _Panel("How unsure it is", "entropy (nats)", lens.entropy),
    ]
    figure = Figure(figsize=(12, 3.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, lens.correct)
    _draw_stable(axes[3], depth)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_panel(axis: Any, panel: _Panel, correct: Bool[np.ndarray, " n"]) -> None:
    layers = np.arange(panel.values.shape[1])
    for group, (name, colour, dash) in _GROUPS.items():
        values = panel.values[correct == group]
        if len(values) == 0:
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        axis.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(
            layers,
            middle,
            dash,
            color=colour,
            linewidth=2,
            label=f"{name} ({len(values)}): median, middle half",
        )
    _finish(axis, panel.title, panel.unit, layers, panel.top)


def _draw_stable(axis: Any, depth: DecisionDepth) -> None:
    layers = np.arange(depth.n_layers + 1)
    for group, (_, colour, dash) in _GROUPS.items():
        chosen: Int[np.ndarray, " m"] = depth.stable_from[depth.correct == group]
        if len(chosen):
            share = (chosen[:, None] <= layers).mean(0)
            axis.plot(layers, share, dash, color=colour, linewidth=2, drawstyle="steps-post")
    _finish(axis, "When it is settled", "share of predictions that no longer change", layers, 1.0)


def _finish(axis: Any, title: str, unit: str, layers: Int[np.ndarray, " depth"], top: float | None) -> None:
    axis.set_title(title, loc="left", fontsize=10, color=_INK)
    axis.set_ylabel(unit, color=_INK, fontsize=9)
    axis.set_xlabel("layer (0 = embedding)", color=_INK, fontsize=9)
    axis.set_xlim(layers[0], layers[-1])
    axis.set_ylim(0, None if top is None else top * 1.03)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=8)
    axis.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axis.set_axisbelow(True)
