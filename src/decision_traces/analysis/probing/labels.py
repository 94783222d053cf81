"""A column of the token table as labels of the examples: classes, or numbers."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64

from decision_traces.analysis.columns import read_columns
from decision_traces.errors import UsageError
from decision_traces.format.lists import is_label
from decision_traces.store import TraceStore

MOST_CLASSES: Final = 24
_WHOLE_CLASSES: Final = 10  # so many different whole numbers are classes still
_OURS: Final = frozenset({"example_id", "text"})


@dataclass(frozen=True, slots=True)
class Labels:
    """The values of a column, of the examples in which it is not empty.

    Attributes:
        name: The column.
        row: (n,) the examples.
        classes: Names of the classes; empty where the label is a number.
        code: (n,) class of each example; 0 for numbers.
        value: (n,) the number of each example; NaN for classes.
    """

    name: str
    row: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]
    code: Int64[np.ndarray, " n"]
    value: Float64[np.ndarray, " n"]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of examples of each class."""
        return {name: int((self.code == i).sum()) for i, name in enumerate(self.classes)}

    def contrasts(self) -> list[tuple[tuple[str, str], Bool[np.ndarray, " n"]]]:
        """Return which groups to compare: two classes with one another, of more each with the rest.

        Returns:
            The names of both, and (n,) which examples are in the first.
        """
        if len(self.classes) == 2:
            return [((self.classes[0], self.classes[1]), self.code == 0)]
        return [((name, "the rest"), self.code == i) for i, name in enumerate(self.classes)]


def labels_of(store: TraceStore, column: str) -> Labels:
    """Return a column as labels.

    Text and true or false are classes; so are whole numbers of which there are up to 10 different ones. Other numbers
    are numbers, also where all of a column's text is numbers, as in a CSV file.

    Raises:
        UsageError: There is no such column, it holds lists, is the same everywhere, or has too many classes.
    """
    names = _usable(store)
    if column not in names:
        problem = "holds no labels" if column in store.columns else "is no column of tokens.parquet"
        raise UsageError(f"--by {column}: {column} {problem}; those that do: {', '.join(names)}.")
    with_gaps = read_columns(store, (column,)).column(column).combine_chunks()
    values = pc.drop_null(with_gaps)
    rows = np.flatnonzero(pc.is_valid(with_gaps).to_numpy(zero_copy_only=False)).astype(np.int64)
    numbers = _numbers(values)
    distinct = pc.unique(values).to_pylist() if numbers is None else np.unique(numbers).tolist()
    if len(distinct) < 2:
        only = f"{distinct[0]!r} in all {len(rows)} examples that have it" if distinct else "empty everywhere"
        raise UsageError(f"--by {column}: {column} is {only}; there is nothing to tell apart.")
    if numbers is not None and not (len(distinct) <= _WHOLE_CLASSES and all(v == int(v) for v in distinct)):
        return Labels(column, rows, (), np.zeros(len(rows), np.int64), numbers)
    if len(distinct) > MOST_CLASSES:
        raise UsageError(
            f"--by {column}: {column} has {len(distinct)} different values in {len(rows)} examples; at most "
            f"{MOST_CLASSES} groups can be compared."
        )
    ordered = sorted(distinct, reverse=pa.types.is_boolean(values.type))  # true against false
    code_of = {value: i for i, value in enumerate(ordered)}
    row_values = values.to_pylist() if numbers is None else numbers.tolist()
    codes = np.array([code_of[value] for value in row_values], np.int64)
    return Labels(column, rows, tuple(map(_name, ordered)), codes, np.full(len(rows), np.nan))


def _usable(store: TraceStore) -> list[str]:
    return [f.name for f in store.schema if f.name not in _OURS and is_label(f.type)]


def _numbers(values: pa.Array) -> Float64[np.ndarray, " n"] | None:
    """Return the values as numbers, None where they are none."""
    if pa.types.is_boolean(values.type):
        return None
    try:
        numbers: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # text that is no number
        return None
    return numbers if np.isfinite(numbers).all() else None


def _name(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
