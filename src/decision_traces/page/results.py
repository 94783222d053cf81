"""What the analyses left in a run, for one example: lens, contributions, lens by choice."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decision_traces.errors import SelectionError, UsageError
from decision_traces.format.analyses import CHOICES_TABLE, CONTRIBUTION_GRID, LENS_GRID
from decision_traces.page import snippets
from decision_traces.page.example import number, table_row
from decision_traces.page.runs import PageRun
from decision_traces.page.slices import LARGEST

if TYPE_CHECKING:
    from decision_traces.analysis.grids import Grid

STATISTICS: Final = ("prob", "rank", "entropy", "kl")
_LARGEST_HALF: Final = 65504.0


class Lens:
    """What the lens says of one example, slots without a token left out.

    Attributes:
        pos: (slot,) token position, counted from the first token.
        known: (slot,) whether the target is the true token.
        candidates: (slot, candidate)
        statistics: Name to (depth, slot).
        top_ids, top_probs: (depth, slot, top)
        candidate_probs: (depth, slot, candidate)
    """

    def __init__(self, run: PageRun, row: int) -> None:
        """Read it.

        Raises:
            SelectionError: The lens was not computed.
            ResultError: It is damaged.
        """
        group = run.grid(LENS_GRID)
        if group is None:
            raise SelectionError(_said(run, "lens"))

        with run.reading("lens"):
            self._read(run, partial(group.read, row=row), row)

    def _read(self, run: PageRun, read: Callable[[str], np.ndarray], row: int) -> None:
        positions = read("positions")
        slots = np.flatnonzero(positions >= 0)
        self.pos = positions[slots] - int(run.store.spans.start[row])
        self.known = read("known")[slots]
        self.candidates = read("candidates")[slots]
        self.statistics = {name: read(name)[:, slots] for name in STATISTICS}
        self.top_ids = read("top_ids")[:, slots]
        self.top_probs = read("top_probs")[:, slots]
        self.candidate_probs = read("candidate_probs")[:, slots]

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        arrays = (value for name, value in vars(self).items() if name != "statistics")
        return sum(value.nbytes for value in (*arrays, *self.statistics.values()))

    @property
    def states_per_block(self) -> int:
        """How many states (depths of slots) one response holds."""
        each: int = 4 + 2 * (len(STATISTICS) - 1) + 6 * self.top_ids.shape[2] + 2 * self.candidates.shape[1]
        return LARGEST // each


def lens_of(run: PageRun, row: int) -> Lens:
    """Return the lens of an example, read once."""
    return run.kept(("lens", row), lambda: Lens(run, row))


def lens_json(run: PageRun, row: int) -> dict[str, Any]:
    """Return the shape of an example's lens, its candidates and the texts of all its tokens."""
    lens = lens_of(run, row)
    words = run.words()
    ids = np.unique(np.concatenate([lens.top_ids.ravel(), lens.candidates.ravel()]))
    return {
        "pos": lens.pos.tolist(),
        "known": lens.known.tolist(),
        "depths": lens.top_ids.shape[0],
        "top": lens.top_ids.shape[2],
        "statistics": list(STATISTICS),
        "states_per_block": lens.states_per_block,
        "candidates": lens.candidates.tolist(),
        "words": {int(i): words[int(i)] for i in ids if int(i) in words},
        "python": {"lens": snippets.lens(run, row), "trajectories": snippets.trajectories(run, row)},
    }


def lens_values(run: PageRun, row: int, statistic: str) -> dict[str, Any]:
    """Return one statistic of an example's lens as JSON: depth by position.

    Raises:
        UsageError: There is no such statistic.
    """
    if statistic not in STATISTICS:
        raise UsageError(f"No statistic {statistic!r}: there are {', '.join(STATISTICS)}.")
    lens = lens_of(run, row)
    values = lens.statistics[statistic]
    digits = 9 if statistic == "rank" else 4  # a rank is a number of tokens, and said exactly
    rounded = [[number(v, digits) for v in depth] for depth in values]
    return {"pos": lens.pos.tolist(), statistic: rounded, "python": snippets.lens(run, row, statistic)}


def lens_block(run: PageRun, row: int, block: int) -> bytes:
    """Return the numbers of some states of an example's lens, depth by depth and slot by slot.

    One behind the other: ranks and the ids of the most probable tokens as int32; probability, entropy, divergence, the
    probabilities of the most probable tokens and those of the candidates as float16.

    Raises:
        SelectionError: There is no such block.
    """
    lens = lens_of(run, row)
    step, n_states = lens.states_per_block, lens.top_ids.shape[0] * lens.top_ids.shape[1]
    if not 0 <= block < -(-n_states // step):
        raise SelectionError(f"block {block}: there are {-(-n_states // step)}, counted from 0.")
    some = slice(block * step, (block + 1) * step)
    whole = (lens.statistics["rank"], lens.top_ids)
    halves = (*(lens.statistics[name] for name in STATISTICS if name != "rank"), lens.top_probs, lens.candidate_probs)
    parts = [values.reshape(n_states, -1)[some].astype("<i4") for values in whole]
    parts += [_half(values.reshape(n_states, -1)[some]) for values in halves]
    return b"".join(part.tobytes() for part in parts)


def _half(values: np.ndarray) -> np.ndarray:
    """Return float16; what is too large for it is the largest that it has."""
    clipped: np.ndarray = np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype("<f2")
    return clipped


def contributions_json(run: PageRun, row: int, position: int) -> dict[str, Any]:
    """Return what each part (and head) adds to the lead of the target over each candidate at one position.

    Raises:
        SelectionError: Contributions were not computed, or not at this position.
        ResultError: They are damaged.
    """
    group = run.grid(CONTRIBUTION_GRID)
    if group is None:
        raise SelectionError(_said(run, "contributions"))
    with run.reading("attribution"):
        return _contributions(run, group, row, position)


def _contributions(run: PageRun, group: "Grid", row: int, position: int) -> dict[str, Any]:
    of_choices = group.attrs.get("of") == "choice"
    start = 0 if of_choices else int(run.store.spans.start[row])
    positions = group.read("positions", row)
    found = np.flatnonzero(positions == position + start)
    if position < 0 or len(found) == 0:
        held = ", ".join(str(p - start) for p in positions[positions >= 0][:8])
        raise SelectionError(f"No contributions at position {position}: there are some at {held or 'none'}.")
    slot = int(found[0])
    candidates = group.read("candidates", row)[slot]
    keep = np.flatnonzero(candidates >= 0)
    _, first = np.unique(candidates[keep], return_index=True)
    keep = keep[np.sort(first)]
    return {
        "pos": position,
        "of": group.attrs.get("of"),
        "candidates": [_candidate(run, row, int(i), of_choices=of_choices) for i in candidates[keep]],
        "parts": group.attrs["parts"],
        "logit_cap": group.attrs.get("logit_cap"),
        "values": _rounded(group.read("parts", row)[slot][keep]),
        "heads": _rounded(group.read("heads", row)[slot][keep]) if "heads" in group else None,
        "python": snippets.contributions(run, row, slot, keep.tolist()),
    }


def contribution_positions(run: PageRun, row: int) -> list[int]:
    """Return the positions of an example that have contributions, counted from its first token."""
    group = run.grid(CONTRIBUTION_GRID)
    if group is None:
        return []
    with run.reading("attribution"):
        held = group.read("positions", row)
    start = 0 if group.attrs.get("of") == "choice" else int(run.store.spans.start[row])
    return [int(p) - start for p in held[held >= 0]]


def _candidate(run: PageRun, row: int, token: int, *, of_choices: bool) -> dict[str, Any]:
    if of_choices:
        values = table_row(run, row)
        return {"id": token, "text": f"{values['choice_labels'][token]} {values['choice_texts'][token]}"}
    return {"id": token, "text": run.words().get(token, f"#{token}")}


def by_choice_json(run: PageRun, row: int) -> dict[str, Any]:
    """Return the choices' logits and probabilities at every depth.

    Raises:
        SelectionError: The lens by choice was not computed, or the example is not in it.
        ResultError: It is damaged.
    """
    lens = run.by_choice
    if lens is None:
        raise SelectionError(_said(run, "by_choice"))
    example = run.store.example_id(row)
    with run.reading("lens"):
        table = lens.table(CHOICES_TABLE, ["depth", "choice", "label", "logit", "prob"], ("example_id", example))
    if not table.num_rows:
        raise SelectionError(f"{example} is not in the lens by choice. Compute it again: {run.command('lens')}.")
    n = len(set(table.column("choice").to_pylist()))
    shaped = {name: table.column(name).to_numpy().reshape(-1, n) for name in ("logit", "prob")}
    return {
        "labels": table.column("label").to_pylist()[:n],
        "logits": _rounded(shaped["logit"]),
        "probs": _rounded(shaped["prob"]),
        "python": snippets.lens_by_choice(run, row),
    }


def _rounded(values: np.ndarray) -> Any:
    """Return nested lists of numbers of five digits."""
    if values.ndim == 0:
        return number(values, 5)
    return [_rounded(part) for part in values] if values.ndim > 1 else [number(v, 5) for v in values]


def _said(run: PageRun, panel: str) -> str:
    said = run.missing().get(panel, {"why": f"This run has no {panel}.", "command": ""})
    return f"{said['why']} {said['command']}".strip()
