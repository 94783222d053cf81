"""How all pictures look: ink, colours that colour-blind readers can tell apart, plain axes, one way to save."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from decision_traces.folders.plain import new_file
from decision_traces.printable import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette; every pair used together also differs in dash or marker.
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREY: Final = "#7A7A7A"
INK: Final = "#333333"
LINES: Final = "#E6E6E6"
MAP_COLOURS: Final = "cividis"

_MOST_LABEL: Final = 120

LABELS: Final = {
    "attn_entropy": ("attention entropy", "nats"),
    "attn_distance": ("distance looked", "tokens"),
    "previous_mass": ("previous-token mass", "share"),
    "first_mass": ("first-token mass (sink)", "share"),
    "same_mass": ("same-token mass", "share"),
    "induction_mass": ("induction mass", "share"),
    "answer_prob": ("probability of the answer", ""),
    "answer_entropy": ("entropy of the answer", "nats"),
    "answer_margin": ("margin of the answer", "logits"),
    "stable_from": ("final from layer", ""),
    "flips": ("changes of mind", ""),
}
"""Name of a figure to what it is called and its unit; a figure that is not here keeps its own name."""


def label_of(figure: str) -> str:
    """Return what a figure is called, with its unit unless it is a plain share."""
    name, unit = LABELS.get(figure, (figure.replace("_", " "), ""))
    return name if unit in {"", "share"} else f"{name} ({unit})"


@contextmanager
def as_written() -> Iterator[None]:
    """Draw words as they stand while this lasts: no dollar begins a formula, and no glyph has to be there.

    It decorates every function that draws, because matplotlib asks for the setting whenever it makes a text.
    """
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
        yield


def label(words: str, most: int = _MOST_LABEL) -> str:
    """Return words as they can be drawn: one line, printable, and no longer than there is room for."""
    return one_line(words, most)


def run_title(what: str, meta: Mapping[str, Any]) -> str:
    """Return a picture's title: what it shows, of which model on which data."""
    return f"{what}: {meta.get('model', '?')} on {meta.get('dataset', '?')}/{meta.get('split', '?')}"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure that draws without a display; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axis: Any, title: str, across: str, up: str, *, grid: str = "y") -> None:
    """Title an axis, name what runs across and up, and take away what is not read."""
    axis.set_title(label(title), loc="left", fontsize=10, color=INK)
    axis.set_xlabel(label(across), color=INK, fontsize=9)
    axis.set_ylabel(label(up), color=INK, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=8)
    axis.grid(axis=grid, color=LINES, linewidth=0.8)
    axis.set_axisbelow(True)


def save(figure: "Figure", path: Path, title: str) -> Path:
    """Put the title over a figure and save it as PNG, whole or not at all; its folder is made."""
    figure.suptitle(label(title), x=0.01, ha="left", fontsize=11, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        figure.savefig(file)
    return path
