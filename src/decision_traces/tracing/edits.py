"""Edits: what a forward pass goes on with in place of an activation that it computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as short

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

    def __post_init__(self) -> None:
        """Refuse what are no numbers of rows, heads and positions.

        Raises:
            UsageError: Names it.
        """
        for name, most_axes in (("heads", 1), ("positions", 2), ("rows", 1)):
            _require_whole_numbers(name, getattr(self, name), most_axes)

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
        new = _numbers(value)
        return cls(lambda now: new.to(now.device, now.dtype).expand_as(now), heads, positions, rows)

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
        new = _numbers(value)
        return cls(lambda now: now + new.to(now.device, now.dtype), heads, positions, rows)

    @classmethod
    def scale(
        cls,
        factor: Tensor | float,
        *,
        heads: Numbers | None = None,
        positions: PositionNumbers | None = None,
        rows: Numbers | None = None,
    ) -> "Edit":
        """Multiply by a number, or by a tensor that broadcasts to what is chosen."""
        by = _numbers(factor)
        return cls(lambda now: now * by.to(now.device), heads, positions, rows)

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


Change = Edit | Callable[[Tensor], Tensor] | Sequence[Edit | Callable[[Tensor], Tensor]]
"""What may stand for a site in `write`: an edit or a function of the whole activation, or several in this order."""


def edits_of(change: Change) -> tuple[Edit, ...]:
    """Return a change as a row of edits.

    Raises:
        UsageError: It is none.
    """
    several = change if isinstance(change, tuple | list) else (change,)
    for one in several:
        if not isinstance(one, Edit) and (not callable(one) or isinstance(one, Tensor)):
            raise UsageError(f"{short(one)} is no edit: give Edit.set(...), Edit.add(...), ..., or a function.")
    return tuple(one if isinstance(one, Edit) else Edit(one) for one in several)


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
    if not isinstance(new, Tensor) or new.is_complex() or new.is_meta or new.layout is not torch.strided:
        raise UsageError(f"The edit of {where} gives {_kind(new)}, and must give a tensor of real numbers.")
    if new.shape != part.shape:
        raise UsageError(f"The edit of {where} gives {tuple(new.shape)} in place of {tuple(part.shape)}.")
    return new.to(part.dtype)


def _kind(given: object) -> str:
    """Return what a function gave, in words."""
    if not isinstance(given, Tensor):
        return f"a {type(given).__name__}"
    return "numbers on the meta device" if given.is_meta else f"a {given.layout} tensor of {given.dtype}"


def _numbers(value: Tensor | float) -> Tensor:
    """Return a value as a tensor of real numbers."""
    try:
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{short(value)}: an edit takes a number or a tensor.") from error
    if numbers.is_complex() or numbers.is_meta:
        raise UsageError(f"An edit takes a number or a tensor of real numbers, not {_kind(numbers)}.")
    return numbers


def _require_whole_numbers(name: str, numbers: PositionNumbers | None, most_axes: int) -> None:
    if numbers is None:
        return
    try:
        chosen = torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}={short(numbers)}: give whole numbers.") from error
    whole = chosen.dtype != torch.bool and not chosen.is_floating_point() and not chosen.is_complex()
    if chosen.dim() > most_axes or (chosen.numel() and not whole):
        raise UsageError(f"{name}={short(numbers)}: give whole numbers, in {most_axes} axes at most.")


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
