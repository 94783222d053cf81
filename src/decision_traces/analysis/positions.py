"""The positions of a run at which predictions are looked at: where each is, the true token, the candidates."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decision_traces.analysis.columns import read_columns
from decision_traces.analysis.decisions import decisions_of, kinds_of
from decision_traces.analysis.states import Point, path_of
from decision_traces.errors import SelectionError
from decision_traces.format.lists import entries_at
from decision_traces.format.stages import EXAMPLE, HEAD
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import NONE, Decisions

CANDIDATES: Final = 10
"""How many of the most probable tokens at the end are candidates, next to the target."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions of a run, a row of slots an example.

    Attributes:
        at: (n, slot) token position in each slot, -1 where it is empty.
        slot: (n, slot) the index of these on the position axis of the run's arrays.
        true_id: (n, slot) the true token, -1 where it is not known.
        choices: (n, choice) tokens that say the choices of a question, or None.
        answer: (n, slot) whether the slot is where the question is answered, or None.
    """

    at: Int64[np.ndarray, "n slot"]
    slot: Int64[np.ndarray, "n slot"]
    true_id: Int64[np.ndarray, "n slot"]
    choices: Int64[np.ndarray, "n choice"] | None = None
    answer: np.ndarray | None = None

    def slots_of(self, decisions: Decisions) -> Int64[np.ndarray, " m"]:
        """Return the slot in which each decision is made.

        Raises:
            SelectionError: The run does not keep the position of one.
        """
        same = self.at[decisions.row] == decisions.position[:, None]
        lost = np.flatnonzero(~same.any(1))
        if len(lost):
            where = f"position {decisions.position[lost[0]]} of {decisions.example_id[lost[0]]}"
            raise SelectionError(f"The run does not keep {where}, where a decision is made.")
        slots: np.ndarray = same.argmax(1).astype(np.int64)
        return slots

    @property
    def n_candidates(self) -> int:
        """Size of the candidate axis."""
        return 1 + CANDIDATES + (0 if self.choices is None else self.choices.shape[1])


@dataclass(frozen=True, slots=True)
class Block:
    """The occupied slots of some consecutive examples, m in all.

    Attributes:
        rows: The examples.
        cells: Two arrays (m,): example, counted from the first of `rows`, and slot.
        stored: (m,) the index of each on the position axis.
        true_id: (m,) the true token, or -1.
        choices: (m, choice) tokens of the choices, -1 at positions that answer no question; None without questions.
    """

    rows: slice
    cells: tuple[np.ndarray, np.ndarray]
    stored: Int64[np.ndarray, " m"]
    true_id: Int64[np.ndarray, " m"]
    choices: Int64[np.ndarray, "m choice"] | None

    def __len__(self) -> int:
        """Return how many positions there are."""
        return len(self.stored)

    def part(self, rows: slice) -> "Block":
        """Return some of the positions."""
        choices = None if self.choices is None else self.choices[rows]
        return Block(
            self.rows, (self.cells[0][rows], self.cells[1][rows]), self.stored[rows], self.true_id[rows], choices
        )

    def chosen(
        self, decisions: Decisions, slots: Int64[np.ndarray, " n"], n_slots: int
    ) -> tuple[slice, Int64[np.ndarray, " k"]]:
        """Return which decisions are made in these examples, and which of the positions each is made at, in order.

        Args:
            decisions: All of a run, at most one an example.
            slots: The slot of each.
            n_slots: How many slots an example has.
        """
        first, last = np.searchsorted(decisions.row, (self.rows.start, self.rows.stop))
        here = slice(int(first), int(last))
        index = self.spread(np.arange(len(self)), n_slots, NONE)
        return here, index[decisions.row[here] - self.rows.start, slots[here]]

    def read(self, point: Point) -> Float[np.ndarray, "m ..."]:
        """Return one state of the stream at every position."""
        picks: dict[str, int | slice] = {EXAMPLE: self.rows}
        axis = point.array.spec.layer_axis
        if axis is not None and point.layer is not None:
            picks[point.array.spec.axes[axis]] = point.layer
        values = point.array.read(**picks)
        chosen: np.ndarray = (
            values[self.row, :, self.stored] if HEAD in point.array.spec.axes else values[self.row, self.stored]
        )
        return chosen

    @property
    def row(self) -> Int64[np.ndarray, " m"]:
        """Row of each position, counted from the first of `rows`."""
        return self.cells[0]

    def slots(self, _point: Point) -> Int64[np.ndarray, " m"]:
        """Return the slot of each position on the position axis, which is that of all arrays of one side."""
        return self.stored

    def spread(self, values: np.ndarray, n_slots: int, empty: int = 0) -> np.ndarray:
        """Return (m, ...) as (row, slot, ...), `empty` in slots without a position."""
        shape = (self.rows.stop - self.rows.start, n_slots, *values.shape[1:])
        grid = np.full(shape, empty, values.dtype)
        grid[self.cells] = values
        return grid

    def candidates(self, end: Float[Tensor, "m vocab"]) -> Int64[np.ndarray, "m candidate"]:
        """Return the target, the choices, and the most probable tokens at the end of the model."""
        top = torch.topk(end, min(CANDIDATES, end.shape[1]), dim=1).indices.cpu().numpy()
        top = np.pad(top, ((0, 0), (0, CANDIDATES - top.shape[1])), constant_values=NONE)
        target = np.where(self.true_id >= 0, self.true_id, top[:, 0])[:, None]
        return np.concatenate([target, *(() if self.choices is None else (self.choices,)), top], axis=1)


def positions_of(store: TraceStore, *, all_positions: bool) -> Positions:
    """Return the positions to look at: those of the decisions, one slot a kind, or all that the run keeps.

    Raises:
        UsageError: The run has no decision that could be read at one position.
        DataError: No example of the run has a prediction.
    """
    array = path_of(store, "hidden")[0].array
    slots, made = array.slots(array.position_axis), [decisions_of(store, kind) for kind in kinds_of(store)]
    decided = [_by_row(decision_set, decision_set.position, store.n) for decision_set in made]
    if all_positions:
        positions = slots.at()
        slot = np.broadcast_to(np.arange(positions.shape[1]), positions.shape)
        true_id = _next_ids(store, positions)
    else:
        positions = np.stack(decided, axis=1)
        slot = np.stack([slots.find(column) for column in decided], axis=1)
        true_id = np.full_like(positions, NONE)
    here = [(positions == column[:, None]) & (positions >= 0) for column in decided]
    for decision_set, made_here in zip(made, here, strict=True):
        true_id = np.where(made_here, _by_row(decision_set, decision_set.true_id, store.n)[:, None], true_id)
    choices = made[0].choices
    if choices is None:
        return Positions(positions, slot, true_id)
    return Positions(positions, slot, true_id, _by_row(made[0], choices.token_ids, store.n), here[0])


def _by_row(decisions: Decisions, values: Int64[np.ndarray, "m ..."], n: int) -> Int64[np.ndarray, "n ..."]:
    """Return values of decisions by row of the run, -1 where a row has none."""
    by_row = np.full((n, *values.shape[1:]), NONE, np.int64)
    by_row[decisions.row] = values
    return by_row


def _next_ids(store: TraceStore, positions: Int64[np.ndarray, "n slot"]) -> Int64[np.ndarray, "n slot"]:
    """Return the token after each position, -1 where the text ends."""
    ids, after = read_columns(store, ("input_ids",)).column("input_ids"), positions + 1
    rows, slots = np.nonzero((positions >= 0) & (after < store.spans.stop[:, None]))
    next_ids = np.full(positions.shape, NONE, np.int64)
    next_ids[rows, slots] = entries_at(ids, rows, after[rows, slots])
    return next_ids


def block_of(positions: Positions, rows: slice) -> Block:
    """Return the occupied slots of some examples."""
    row, slot = np.nonzero(positions.at[rows] >= 0)
    choices = None
    if positions.choices is not None and positions.answer is not None:
        answers = positions.answer[rows][row, slot]
        choices = np.where(answers[:, None], positions.choices[rows][row], NONE)
    return Block(rows, (row, slot), positions.slot[rows][row, slot], positions.true_id[rows][row, slot], choices)
