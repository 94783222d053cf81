"""Edits: what a forward pass goes on with in place of an activation that it computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decision_traces.errors import SelectionError, UsageError

Numbers = int | Sequence[int]
PositionNumbers = Numbers | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one activation, of all of it or of some rows, heads and positions. Use `set`, `add`, `scale`, `by`.

    Attributes:
        change: Gets what is chosen of the activation and returns what stands there instead, in the same shape:
            (rows, positions, width), or (rows, heads, positions, width) where the stage has heads.
        heads: Numbers of the heads that are changed; None for all. Of keys and values: of the key-value heads.
        positions: Numbers of the positions (of attention probabilities: of the queries) that are changed, the same in
            every row; or a row of numbers for each of the changed rows; None for all.
        rows: Numbers of the rows of the batch that are changed; None for all.
    """

    change: Callable[[Tensor], Tensor]
    heads: Numbers | None = None
    positions: PositionNumbers | None = None
    rows: Numbers | None = None

    @classmethod
    def set(
        cls,
        value: Tensor | float,
        *,
        heads: Numbers | None = None,
        positions: PositionNumbers | None = None,
        rows: Numbers | None = None,
    ) -> "Edit":
        """Put a value (a number, or a tensor that broadcasts to what is chosen) in its place."""
        return cls(lambda now: torch.as_tensor(value).to(now.device, now.dtype).expand_as(now), heads, positions, rows)

    @classmethod
    def add(
        cls,
        value: Tensor | float,
        *,
        heads: Numbers | None = None,
        positions: PositionNumbers | None = None,
        rows: Numbers | None = None,
    ) -> "Edit":
        """Add a value (a number, or a tensor that broadcasts to what is chosen, such as a vector)."""
        return cls(lambda now: now + torch.as_tensor(value).to(now.device, now.dtype), heads, positions, rows)

    @classmethod
    def scale(
        cls,
        factor: float,
        *,
        heads: Numbers | None = None,
        positions: PositionNumbers | None = None,
        rows: Numbers | None = None,
    ) -> "Edit":
        """Multiply by a number."""
        return cls(lambda now: now * factor, heads, positions, rows)

    @classmethod
    def by(
        cls,
        change: Callable[[Tensor], Tensor],
        *,
        heads: Numbers | None = None,
        positions: PositionNumbers | None = None,
        rows: Numbers | None = None,
    ) -> "Edit":
        """Let a function say what stands there instead; it must not change its argument in place."""
        return cls(change, heads, positions, rows)

    @property
    def whole(self) -> bool:
        """Whether all of the activation is changed."""
        return self.heads is None and self.positions is None and self.rows is None


Change = Edit | Callable[[Tensor], Tensor] | Sequence[Edit]
"""What may stand for a site in `write`: an edit, several in this order, or a function of the whole activation."""


def edits_of(change: Change) -> tuple[Edit, ...]:
    """Return a change as a row of edits."""
    if isinstance(change, Edit):
        return (change,)
    return (Edit(change),) if callable(change) else tuple(change)


def edited(value: Tensor, edits: Sequence[Edit], where: str) -> Tensor:
    """Return an activation after some edits; the activation itself stays as it is.

    Args:
        value: (rows, positions, width), or (rows, heads, positions, width).
        edits: In the order in which they are made.
        where: What the activation is, for messages.

    Raises:
        UsageError: An edit gives another shape than it got, or chooses heads where the stage has none.
        SelectionError: A row, head or position is outside what is there, or positions are not given for every row.
    """
    for edit in edits:
        if edit.whole:
            value = _changed(edit, value, where)
        else:
            chosen = _index(edit, value, where)
            value = value.index_put(chosen, _changed(edit, value[chosen], where))
    return value


def _changed(edit: Edit, part: Tensor, where: str) -> Tensor:
    try:
        new = edit.change(part)
    except RuntimeError as error:
        raise UsageError(f"The edit of {where} does not fit what it changes, {tuple(part.shape)}: {error}") from error
    if new.shape != part.shape:
        raise UsageError(f"The edit of {where} gives {tuple(new.shape)} in place of {tuple(part.shape)}.")
    return new.to(part.dtype)


def _index(edit: Edit, value: Tensor, where: str) -> tuple[Tensor, ...]:
    """Return one index an axis, all broadcast to what is chosen, without the last axis."""
    by_head = value.dim() == 4
    rows = _within(edit.rows, value.shape[0], "row", where).reshape(-1, *(1,) * (value.dim() - 2))
    positions = _within(edit.positions, value.shape[-2], "position", where)
    if positions.dim() == 2 and len(positions) != len(rows):
        raise SelectionError(f"{where}: positions are given for {len(positions)} rows, and {len(rows)} are changed.")
    positions = positions.reshape(-1, *(1,) * by_head, positions.shape[-1])
    if not by_head:
        if edit.heads is not None:
            raise UsageError(f"{where} has no heads to choose from.")
        index: tuple[Tensor, ...] = (rows, positions)
    else:
        index = (rows, _within(edit.heads, value.shape[1], "head", where)[:, None], positions)
    return tuple(i.to(value.device) for i in index)


def _within(numbers: PositionNumbers | None, size: int, what: str, where: str) -> Tensor:
    """Return the numbers along an axis as a tensor."""
    if numbers is None:
        return torch.arange(size)
    chosen = torch.as_tensor(numbers, dtype=torch.long)
    chosen = chosen.reshape(1) if chosen.dim() == 0 else chosen
    if not chosen.numel():
        raise SelectionError(f"{where}: no {what} is chosen, so that nothing would be written.")
    if int(chosen.min()) < 0 or int(chosen.max()) >= size:
        raise SelectionError(f"{where}: {what} {numbers} is asked for, and {what}s 0 to {size - 1} are there.")
    return chosen
