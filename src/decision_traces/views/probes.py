"""A picture of how well correctness can be read from each layer, beside what shuffled labels give."""

from pathlib import Path
from typing import Any

import numpy as np

from decision_traces.analysis.probe import ProbeResult
from decision_traces.views.style import BLUE, GREY, VERMILION, as_written, new_figure, plain, save

_PANELS = (
    ("auroc", "control_auroc", "AUROC", BLUE),
    ("balanced_accuracy", "control_balanced_accuracy", "balanced accuracy", VERMILION),
)


@as_written()
def save_probe(probe: ProbeResult, path: Path, title: str) -> Path:
    """Draw both scores of the probe over depth with their controls and save them as PNG.

    Lines are means over folds, bands one standard deviation; the thin line at 0.5 is chance.

    Args:
        probe: The scores.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    figure = new_figure(10.0, 4.0)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (score, control, label, colour) in zip(axes, _PANELS, strict=True):
        axis.axhline(0.5, color=GREY, linewidth=0.8)
        _draw(axis, probe, control, GREY, "s--", "labels shuffled (control)")
        _draw(axis, probe, score, colour, "o-", "right against wrong: mean ± SD over folds")
        plain(axis, label, "layer (0 = embedding)", "score on left-out examples" if axis is axes[0] else "")
        axis.set_xlim(-0.2, len(probe.auroc) - 0.8)
        axis.set_ylim(min(0.2, *axis.get_ylim()), 1.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return save(figure, path, f"{title} ({probe.n_right} right, {probe.n_wrong} wrong)")


def _draw(axis: Any, probe: ProbeResult, score: str, colour: str, dash: str, label: str) -> None:
    mean, sd, depth = probe.mean(score), probe.sd(score), np.arange(len(probe.auroc))
    axis.fill_between(depth, mean - sd, np.minimum(1, mean + sd), color=colour, alpha=0.18, linewidth=0)
    axis.plot(depth, mean, dash, color=colour, linewidth=2, markersize=4, label=label)
