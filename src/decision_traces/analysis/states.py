"""Reading the residual stream at the positions of decisions, a few examples and one layer at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from decision_traces.analysis.requirements import need_whole
from decision_traces.format.stages import DEPTH, EXAMPLE, HEAD, KEY, LAYER
from decision_traces.store import StoredArray, TraceStore, rows_per_step
from decision_traces.tasks.decisions import Decisions

Stage = Literal["hidden", "pre_attn", "post_attn", "post_mlp"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
_WHAT: Final = "reading the stream layer by layer (lens, decision depth, attribution)"


@dataclass(frozen=True, slots=True)
class Point:
    """One state of the residual stream on the way through the model.

    Attributes:
        array: Where it is stored.
        layer: Index on the array's layer or depth axis; None where it has none.
        normed: Whether the final norm has been applied already: true only for `hidden[L]`.
    """

    array: StoredArray
    layer: int | None
    normed: bool = False


@runtime_checkable
class Reader(Protocol):
    """Some positions of some consecutive examples, m in all, at which states are read.

    Attributes:
        rows: The examples.
        row: (m,) row of each position, counted from the first of `rows`, ascending.
    """

    @property
    def rows(self) -> slice: ...  # noqa: D102
    @property
    def row(self) -> Int64[np.ndarray, " m"]: ...  # noqa: D102

    def read(self, point: Point) -> Float[np.ndarray, "m ..."]:
        """Return one state at every position."""

    def slots(self, point: Point) -> Int64[np.ndarray, " m"]:
        """Return the slot of each position on an array's position axis."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive examples of a run, and the decisions among them.

    Attributes:
        rows: The examples.
        decisions: Which decisions, as a slice of all.
        row: (m,) row of each decision, counted from the first of `rows`.
        position: (m,) position of each decision.
    """

    rows: slice
    decisions: slice
    row: Int64[np.ndarray, " m"]
    position: Int64[np.ndarray, " m"]

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self.row)

    def read(self, point: Point) -> Float[np.ndarray, "m ..."]:
        """Return what one array holds at every decision; of attention the query row, of q, k and v all positions.

        Raises:
            SelectionError: The run does not keep the position of some decision.
        """
        picks: dict[str, int | slice] = {EXAMPLE: self.rows}
        axis = _layer_axis(point.array)
        if axis is not None and point.layer is not None:
            picks[axis] = point.layer
        chosen: np.ndarray
        spec = point.array.spec
        if not {KEY, HEAD} & set(spec.axes) and spec.capture != "qkv" and (np.diff(self.row) > 0).all():
            # At most one decision a row: no more is read than these.
            slots = np.full(self.rows.stop - self.rows.start, -1, dtype=np.int64)
            slots[self.row] = self.slots(point)
            chosen = point.array.read_slots(slots, **picks)[self.row]
            return chosen
        values = point.array.read(**picks)
        if spec.capture == "qkv":
            chosen = values[self.row]
            return chosen
        slot = self.slots(point)
        chosen = values[self.row, :, slot] if HEAD in spec.axes else values[self.row, slot]
        return chosen

    def slots(self, point: Point) -> Int64[np.ndarray, " m"]:
        """Return the slot of each decision on an array's position axis."""
        axis = point.array.slots(point.array.position_axis)
        slots: np.ndarray = axis.find(self.position, self.rows.start + self.row)
        return slots


def path_of(store: TraceStore, stage: Stage) -> list[Point]:
    """Return the states of one stage in the order of the layers.

    `hidden` is the way from the embedding (depth 0) to the end of the model (depth L). A run that captured the
    residual stages alone has the same way: the inputs of all layers and the output of the last.

    Raises:
        NotCapturedError: The run captured neither.
        UsageError: The run does not keep all layers.
    """
    n_layers, side = store.L, "enc" if store.arch == "enc" else "dec"
    if stage == "hidden":
        if store.has(f"{side}_hidden") or not store.has(f"{side}_res_pre_attn"):
            array = store.array(f"{side}_hidden")
            need_whole(array, _WHAT)
            return [Point(array, depth, normed=depth == n_layers) for depth in range(n_layers + 1)]
        return [*path_of(store, "pre_attn"), path_of(store, "post_mlp")[-1]]
    array = store.array(f"{side}_res_{stage}")
    need_whole(array, _WHAT)
    return [Point(array, layer) for layer in range(n_layers)]


def parts(points: Sequence[Point], decisions: Decisions) -> Iterator[Part]:
    """Yield the run in parts: as many examples as reading one layer of any array takes within its budget."""
    arrays = {point.array.spec.name: point.array for point in points}.values()
    step = min(rows_per_step(a, {axis: 0} if (axis := _layer_axis(a)) else {}) for a in arrays)
    n = next(iter(arrays)).size(EXAMPLE)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        first, last = np.searchsorted(decisions.row, (rows.start, rows.stop))
        chosen = slice(int(first), int(last))
        if last > first:
            yield Part(rows, chosen, decisions.row[chosen] - rows.start, decisions.position[chosen])


def states_at(
    points: Sequence[Point], decisions: Decisions, at_once: int
) -> Iterator[tuple[slice, list[Float[np.ndarray, "m d_model"]]]]:
    """Yield so many decisions at a time, as a slice of all, and every state of the stream at them.

    Portions are as large as they may be, because each has a cost of its own, however many decisions it has.

    Raises:
        SelectionError: The run does not keep the position of some decision.
    """
    start, ready, waiting = 0, 0, []
    for part in parts(points, decisions):
        waiting.append([part.read(point) for point in points])
        ready, last = ready + len(part), part.decisions.stop == len(decisions)
        if ready < at_once and not last:
            continue
        states = [np.concatenate(of_point) for of_point in zip(*waiting, strict=True)]
        done = ready if last else ready // at_once * at_once
        for first in range(0, done, at_once):
            rows = slice(first, min(first + at_once, done))
            yield slice(start + rows.start, start + rows.stop), [state[rows] for state in states]
        start, ready, waiting = start + done, ready - done, [[state[done:] for state in states]]


def _layer_axis(array: StoredArray) -> str | None:
    return next((axis for axis in array.spec.axes if axis in {LAYER, DEPTH}), None)
