"""The user's own texts from memory: texts, rows with a column `text`, or a table of them."""

from collections.abc import Iterable, Iterator, Mapping
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
        UsageError: It is nothing of this, or holds no text.
        DataError: A row has no text, or a text that is none.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise UsageError(f"texts={texts!r}: give a list of texts, or rows with a column {TEXT!r}.")
    rows = texts.to_dict("records") if hasattr(texts, "to_dict") and hasattr(texts, "columns") else texts
    found = tuple(
        Example(make_example_id(NAME, "all", row.number, row.text), row.text, row.fields)
        for row in rows_of_records(_records(rows))
    )
    if not found:
        raise UsageError("texts: there is none.")
    return found


def _records(rows: Iterable[Any]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        values = row if isinstance(row, Mapping) else {TEXT: row}
        yield Record(number, f"texts[{number}]", {str(name): _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    """Return a number or list of NumPy's as Python's own."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
