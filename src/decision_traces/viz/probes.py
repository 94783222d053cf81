"""A picture of how well correctness, or any label, can be read from each layer, beside what shuffled labels give."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from decision_traces.analysis.probing.correctness import ProbeResult
from decision_traces.analysis.probing.label import LabelProbe
from decision_traces.viz.style import BLUE, GREY, VERMILION, as_written, new_figure, plain, save

_PANELS = (
    ("auroc", "control_auroc", "AUROC", BLUE),
    ("balanced_accuracy", "control_balanced_accuracy", "balanced accuracy", VERMILION),
)


@as_written()
def save_probe(probe: ProbeResult | LabelProbe, path: Path, title: str) -> Path:
    """Draw the scores of a probe over depth with their controls and save them as PNG.

    Lines are means over folds, bands one standard deviation; the thin line is chance.

    Args:
        probe: The scores.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    if isinstance(probe, LabelProbe):
        panels = [(probe.score, probe.control, probe.measure, BLUE, probe.chance)]
        what, sizes = probe.label, probe.sizes
    else:
        panels = [(getattr(probe, score), getattr(probe, control), label, colour, 0.5)
                  for score, control, label, colour in _PANELS]  # fmt: skip
        what, sizes = "right against wrong", {"right": probe.n_right, "wrong": probe.n_wrong}
    figure = new_figure(5.0 * len(panels), 4.0)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (score, control, label, colour, chance) in zip(axes, panels, strict=True):
        axis.axhline(chance, color=GREY, linewidth=0.8)
        _draw(axis, control, GREY, "s--", "labels shuffled (control)")
        _draw(axis, score, colour, "o-", f"{what}: mean ± SD over folds")
        plain(axis, label, "layer (0 = embedding)", "score on left-out examples" if axis is axes[0] else "")
        axis.set_xlim(-0.2, len(score) - 0.8)
        axis.set_ylim(min(0.2, *axis.get_ylim()), 1.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return save(figure, path, f"{title} ({', '.join(f'{n} {name}' for name, n in sizes.items())})")


def _draw(axis: Any, scores: Float64[np.ndarray, "depth k"], colour: str, dash: str, label: str) -> None:
    mean, sd, depth = scores.mean(1), scores.std(1, ddof=1), np.arange(len(scores))
    axis.fill_between(depth, mean - sd, np.minimum(1, mean + sd), color=colour, alpha=0.18, linewidth=0)
    axis.plot(depth, mean, dash, color=colour, linewidth=2, markersize=4, label=label)
