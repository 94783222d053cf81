"""A picture of the lens by choice: who leads at which layer, where the answer given is right and where wrong."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from decision_traces.analysis.results import LensByChoice
from decision_traces.viz.groups import RIGHT, UNKNOWN, WRONG, grouped
from decision_traces.viz.style import BLUE, GREY, VERMILION, as_written, new_figure, plain, save

_ACROSS = "layer (0 = embedding)"


@as_written()
def save_lens_by_choice(by_choice: LensByChoice, path: Path, title: str) -> Path:
    """Draw the probability of the answers layer by layer and save it as PNG.

    One panel for questions answered right, one for those answered wrong (or, without known answers, one for all):
    mean probability of the right answer, of the answer given, and of each other answer, with the middle half of the
    questions as bands. The last panel shows how many questions would be answered right, and how many answered as in
    the end, if the model ended at each layer.

    Args:
        by_choice: The lens by choice.
        path: The picture's file; its folder is made.
        title: What run it is.
    """
    groups = grouped(by_choice.is_correct, by_choice.known)
    figure = new_figure(4.2 * (len(groups) + 1), 4.2)
    axes = figure.subplots(1, len(groups) + 1, squeeze=False)[0]
    heading = {RIGHT: "Answered right", WRONG: "Answered wrong", UNKNOWN: "Right answer unknown"}
    for axis, (group, mask) in zip(axes, groups, strict=False):
        _draw_answers(axis, by_choice, mask)
        share = f"{mask.sum()} of {len(mask)} questions"
        _finish(axis, by_choice, f"{heading[group]}: {share}", "probability among the answers")
    _draw_leads(axes[-1], by_choice)
    return save(figure, path, title)


def _draw_answers(axis: Any, by_choice: LensByChoice, mask: np.ndarray) -> None:
    probs, right, predicted = by_choice.probs[mask], by_choice.correct_idx[mask], by_choice.pred_idx[mask]
    every = np.arange(len(probs))
    others = np.ones((len(probs), probs.shape[2]), bool)
    others[every, predicted] = False
    if (right >= 0).all():
        others[every, right] = False
        _line(axis, by_choice, probs[every, :, right], "right answer", BLUE, "-")
    if (predicted != right).all():
        _line(axis, by_choice, probs[every, :, predicted], "answer given", VERMILION, "--")
    each_other = np.where(others[:, None, :], probs, np.nan)
    if others.any(1).all():
        _line(axis, by_choice, np.nanmean(each_other, axis=2), "each other answer (mean)", GREY, ":")
    axis.legend(loc="upper left", frameon=False, fontsize=8, title="mean, and middle half", title_fontsize=8)


def _line(
    axis: Any, by_choice: LensByChoice, values: Float[np.ndarray, "n depth"], label: str, colour: str, dash: str
) -> None:
    layers = np.arange(by_choice.n_layers + 1)
    low, high = np.quantile(values, [0.25, 0.75], axis=0)
    axis.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(layers, values.mean(0), dash, color=colour, linewidth=2, label=label)


def _draw_leads(axis: Any, by_choice: LensByChoice) -> None:
    layers, leader = np.arange(by_choice.n_layers + 1), by_choice.logits.argmax(2)
    settled = (leader == by_choice.pred_idx[:, None]).mean(0)
    axis.plot(layers, settled, "--", color=VERMILION, linewidth=2, label="answer as in the end")
    if by_choice.known.any():
        right = (leader == by_choice.correct_idx[:, None])[by_choice.known].mean(0)
        axis.plot(layers, right, "-", color=BLUE, linewidth=2, label="right answer")
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    _finish(axis, by_choice, "Who leads at each layer", "share of questions")


def _finish(axis: Any, by_choice: LensByChoice, title: str, unit: str) -> None:
    plain(axis, title, _ACROSS, unit)
    axis.set_xlim(0, by_choice.n_layers)
    axis.set_ylim(0, 1.03)
    axis.xaxis.get_major_locator().set_params(integer=True)
    chance = 1 / by_choice.probs.shape[2]
    axis.axhline(chance, color=GREY, linewidth=0.8)
    axis.text(by_choice.n_layers, chance, "chance ", ha="right", va="top", color=GREY, fontsize=8)
