"""The Python that reads what a panel shows, to be pasted: every name in it is a literal that `repr` made.

What is chosen on the page (`layer`, `head`, `stat`, `pos`) stands by name where nothing is given for it; the page
writes a line such as `layer = 3` above.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decision_traces.format.analyses import CHOICES_TABLE, CONTRIBUTION_GRID, LENS_GRID
from decision_traces.page.runs import ANALYSIS_OF

if TYPE_CHECKING:
    from decision_traces.page.runs import PageRun


def opening(path: str, results: str | None = None) -> str:
    """Return the lines that every snippet begins with: they open the run, with results that lie elsewhere."""
    elsewhere = "" if results is None else f", results={results!r}"
    return f"from decision_traces import TraceStore\n\nst = TraceStore({path!r}{elsewhere})"


def tokens(run: "PageRun", row: int, choice: int) -> str:
    """Return what gives the ids of an example's tokens (of one choice)."""
    return f"st.encodings({_of(run, row, choice)}, trim=True)"


def decision(run: "PageRun", row: int) -> str:
    """Return what gives an example's row of the token table."""
    return f"st.tokens.iloc[{_row(run, row)}]"


def attention(run: "PageRun", row: int, choice: int, layer: int | str = "layer", head: int | str = "head") -> str:
    """Return what gives the attention of one head."""
    side = "" if run.task.reads_choices else f", side={run.store.sides[0]!r}"
    call = "mcq_attn" if run.task.reads_choices else "attn"
    return f"st.{call}({_of(run, row, choice)}{side}, layer={layer}, head={head}, trim=True)"


def lens(run: "PageRun", row: int, statistic: str | None = None) -> str:
    """Return what gives a statistic of the lens (depth, position), at the positions that it has."""
    name = "stat" if statistic is None else repr(statistic)
    return f"{_grid(run, row, LENS_GRID)}\ngrid[{name}][row][:, grid['positions'][row] >= 0]"


def trajectories(run: "PageRun", row: int) -> str:
    """Return what gives the probabilities (depth, candidate) of what the lens follows at a position."""
    start = int(run.store.spans.start[row])
    position = f"pos + {start}" if start else "pos"
    return f"{_grid(run, row, LENS_GRID)}\ngrid['candidate_probs'][row][:, grid['positions'][row] == {position}][:, 0]"


def lens_by_choice(run: "PageRun", row: int) -> str:
    """Return what gives the choices' logits and probabilities at every depth."""
    path = f"{ANALYSIS_OF[CHOICES_TABLE]}/{CHOICES_TABLE}"
    return (
        f"import pandas as pd\n\nby_choice = pd.read_parquet(st.results.folder / {path!r})\n"
        f"by_choice[by_choice['example_id'] == {run.store.example_id(row)!r}]"
    )


def contributions(run: "PageRun", row: int, slot: int, candidates: Sequence[int]) -> str:
    """Return what gives the contributions (candidate, part) at one position."""
    return f"{_grid(run, row, CONTRIBUTION_GRID)}\ngrid['parts'][row][{slot}][{list(candidates)!r}]"


def _of(run: "PageRun", row: int, choice: int) -> str:
    of_choice = f", choice_idx={choice}" if run.task.reads_choices else ""
    return f"{run.store.example_id(row)!r}{of_choice}"


def _row(run: "PageRun", row: int) -> str:
    return f"st.row({run.store.example_id(row)!r})"


def _grid(run: "PageRun", row: int, name: str) -> str:
    path = f"{ANALYSIS_OF[name]}/{name}"
    return f"import zarr\n\ngrid = zarr.open_group(st.results.folder / {path!r}, mode='r')\nrow = {_row(run, row)}"
