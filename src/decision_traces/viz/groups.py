"""The groups that most pictures compare: right, wrong, and of unknown truth; each its own colour, dash and mark."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from decision_traces.viz.style import BLUE, GREY, INK, VERMILION


@dataclass(frozen=True, slots=True)
class Group:
    """One group: what it is called and how it is drawn."""

    name: str
    colour: str
    dash: str


RIGHT: Final = Group("right", BLUE, "-")
WRONG: Final = Group("wrong", VERMILION, "--")
UNKNOWN: Final = Group("truth unknown", GREY, ":")


def grouped(correct: Bool[np.ndarray, " n"], known: Bool[np.ndarray, " n"]) -> list[tuple[Group, np.ndarray]]:
    """Return the groups that have members, each with its mask (n,)."""
    masks = ((RIGHT, known & correct), (WRONG, known & ~correct), (UNKNOWN, ~known))
    return [(group, mask) for group, mask in masks if mask.any()]


def draw_bands(
    axis: Any,
    across: Float[np.ndarray, " x"],
    values: Float[np.ndarray, "n x"],
    groups: list[tuple[Group, np.ndarray]],
) -> None:
    """Draw each group's median as a line and its middle half as a band; a group without numbers is left out."""
    for group, mask in groups:
        some = values[mask & np.isfinite(values).all(1)]
        if len(some) == 0:
            continue
        low, middle, high = np.quantile(some, [0.25, 0.5, 0.75], axis=0)
        axis.fill_between(across, low, high, color=group.colour, alpha=0.18, linewidth=0)
        label = f"{group.name} ({len(some)}): median, middle half"
        axis.plot(across, middle, group.dash, color=group.colour, linewidth=2, label=label)
    if not axis.lines:
        axis.text(0.5, 0.5, "no truth known", transform=axis.transAxes, ha="center", color=INK, fontsize=9)


def add_legend(figure: Any, *axes: Any) -> None:
    """Put the labels of these axes below the figure, each once."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, len(handles)), frameon=False
    )
