"""A reliability diagram: how often answers are right, over how sure the model is of them."""

from pathlib import Path

import numpy as np

from decision_traces.analysis.comparison.calibration import Calibration
from decision_traces.viz.style import BLUE, GREY, INK, as_written, new_figure, plain, save


@as_written()
def save_reliability(calibration: Calibration, path: Path, title: str) -> Path:
    """Draw accuracy against confidence, with the number of answers in each bin below, and save it as PNG.

    Points lie at the mean confidence of a bin, larger where it holds more answers; whiskers are 95 % intervals of
    its accuracy. On the dashed line confidence and accuracy agree; below it the model is too sure.

    Args:
        calibration: The bins.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    figure = new_figure(5.6, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    some = calibration.n_examples > 0
    centre, share = calibration.confidence[some], calibration.accuracy[some]
    whiskers = np.maximum(0, [share - calibration.accuracy_low[some], calibration.accuracy_high[some] - share])
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2, label="perfectly calibrated")
    upper.errorbar(centre, share, yerr=whiskers, fmt="none", color=BLUE, linewidth=1.2, alpha=0.6, capsize=2)
    area = 16 + 160 * calibration.n_examples[some] / calibration.n_examples.max()
    upper.scatter(centre, share, s=area, color=BLUE, zorder=3, clip_on=False, label="this run: bin with 95 % interval")
    upper.annotate("too sure", (0.97, 0.03), xycoords="axes fraction", ha="right", color=GREY, fontsize=9)
    upper.annotate("not sure enough", (0.03, 0.94), xycoords="axes fraction", color=GREY, fontsize=9)
    upper.set_xlim(0, 1)
    upper.set_ylim(-0.02, 1.02)
    figures = f"ECE {calibration.ece:.3f}, Brier {calibration.brier:.3f}, {calibration.n_examples.sum()} answers"
    plain(upper, figures, "", "share that is right", grid="both")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    edges = calibration.edges
    lower.bar(edges[:-1], calibration.n_examples, np.diff(edges), align="edge", color=BLUE, edgecolor="white")
    plain(lower, "", "probability of the answer given (confidence)", "answers")
    return save(figure, path, title)
