"""The user's own texts from memory: texts, rows with a column `text`, or a table of them."""

from collections.abc import Iterable, Iterator, Mapping, Set
from reprlib import repr as short
from typing import Any, Final

import numpy as np

from decision_traces.data.example import Example, make_example_id
from decision_traces.data.text_files import TEXT, Record, rows_of_records
from decision_traces.errors import UsageError

NAME: Final = "texts"
"""What the data is called in ids and meta."""


def own_examples(texts: Any) -> tuple[Example, ...]:
    """Return examples from what Python users have.

    Args:
        texts: Texts; or rows that map columns to values, one of them `text`; or a pandas DataFrame or a data set of
            `datasets` with such a column. Other columns go with the texts.

    Raises:
        UsageError: It is nothing of this, has no order, or holds no text.
        DataError: A row has no text, or a text that is none.
    """
    if isinstance(texts, Mapping) and texts:
        raise UsageError(
            f"texts: this is a {type(texts).__name__} of {', '.join(map(str, texts))}. Give one of its splits, a list "
            f"of texts, or a list of rows with a column {TEXT!r}."
        )
    if isinstance(texts, str | bytes | Set) or not isinstance(texts, Iterable):
        raise UsageError(f"texts={short(texts)}: give a list of texts, or rows with a column {TEXT!r}.")
    rows = _rows_of_frame(texts) if hasattr(texts, "to_dict") and hasattr(texts, "columns") else texts
    examples = tuple(
        Example(make_example_id(NAME, "all", row.number, row.text), row.text, row.fields)
        for row in rows_of_records(_records(rows))
    )
    if not examples:
        raise UsageError("texts: there is none.")
    return examples


def _rows_of_frame(frame: Any) -> list[dict[Any, Any]]:
    """Return the rows of a pandas DataFrame; what is missing (NaN, NaT, NA) as None."""
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"texts: two columns of the table are named {twice[0]!r}. Rename one.")
    rows: list[dict[Any, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows


def _records(rows: Iterable[Any]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        values = row if isinstance(row, Mapping) else {TEXT: row}
        yield Record(number, f"texts[{number}]", {str(name): _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    """Return a number or list of NumPy's as Python's own."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
