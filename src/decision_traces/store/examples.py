"""The examples of a run: who they are, their text and tokens, and where these lie on the position axis."""

import difflib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from decision_traces.errors import DamagedRunError, UnknownExampleError, UsageError
from decision_traces.schema import TOKENS_FILE
from decision_traces.store.folder import FileRecord
from decision_traces.store.selection import ExampleKey, checked_index
from decision_traces.store.table import Spans, list_levels, mask_spans, read_table, rectangle

if TYPE_CHECKING:
    import pandas

_ENCODINGS: Final = ("input_ids", "attention_mask", "offset_mapping", "tokens")


class Examples:
    """The rows of `tokens.parquet`, read on first use."""

    def __init__(self, run: Path, expected: Callable[[str], FileRecord | None]) -> None:
        """Keep the path; nothing is read.

        Args:
            run: The run folder.
            expected: Gives what the manifest says about a file.
        """
        self._path = run / TOKENS_FILE
        self._expected = expected

    @cached_property
    def table(self) -> pa.Table:
        """The whole table as Arrow, far smaller in memory than as pandas."""
        return read_table(self._path, expected=self._expected(TOKENS_FILE))

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """The whole table as a data frame."""
        frame: pandas.DataFrame = self.table.to_pandas()
        return frame

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column.

        Raises:
            DamagedRunError: There is no such column.
        """
        if name not in self.table.column_names:
            there = ", ".join(self.table.column_names)
            raise DamagedRunError(f"{self._path} has no column {name}; it has {there}.")
        return self.table.column(name)

    @cached_property
    def ids(self) -> list[Any]:
        """The example_id of every row."""
        return list(self.column("example_id").to_pylist())

    @cached_property
    def _rows(self) -> dict[Any, list[int]]:
        rows: dict[Any, list[int]] = {}
        for row, example_id in enumerate(self.ids):
            rows.setdefault(example_id, []).append(row)
        return rows

    @cached_property
    def spans(self) -> Spans:
        """Where each example's tokens lie, from the attention mask (or n_tokens, where there is no mask)."""
        names = self.table.column_names
        if "attention_mask" in names and list_levels(self.table.column("attention_mask")) is not None:
            return mask_spans(rectangle(self.table.column("attention_mask")) != 0)
        counts = rectangle(self.column("n_tokens")).astype(np.int64)
        return Spans(np.zeros_like(counts), counts)

    def row(self, example: ExampleKey) -> int:
        """Return the row of an example_id; a row number is checked and returned.

        Raises:
            UnknownExampleError: The run has no such example_id.
            SelectionError: The run has no such row.
            UsageError: Two rows carry this example_id.
        """
        found = self._rows.get(example.item() if isinstance(example, np.generic) else example, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"example_id {example!r} stands in rows {found}: ask by row number.")
        if isinstance(example, int | np.integer):
            return checked_index(example, len(self.ids), "row")
        hint = self._suggestion(str(example))
        raise UnknownExampleError(f"No example {example!r} in {self._path.parent}. {hint}")

    def _suggestion(self, wrong: str) -> str:
        # difflib is quadratic: look at examples that begin alike first, then at a bounded number.
        ids = [str(i) for i in self.ids]
        alike = [i for i in ids if wrong and (i.startswith(wrong) or wrong.startswith(i))][:1]
        alike = alike or difflib.get_close_matches(wrong, ids[:5000], n=1)
        if alike:
            return f"Did you mean {alike[0]!r}?"
        return f"The first of {len(ids)} is {ids[0]!r}." if ids else "It has no examples."

    def span(self, row: int, choice: int | None = None) -> slice:
        """Return the positions of one example's tokens (of one choice, where the run has choices).

        Raises:
            UsageError: The run has choices of different lengths and none was named.
        """
        start, stop = self.spans.start[row], self.spans.stop[row]
        if start.ndim:
            if choice is None:
                raise UsageError("Each choice has its own length: name choice_idx to trim to its tokens.")
            start, stop = start[checked_index(choice, len(start), "choice_idx")], stop[choice]
        return slice(int(start), int(stop))

    def text(self, row: int) -> str:
        """Return the text of a row as it went to the tokenizer."""
        return str(self.column("text")[row].as_py())

    def encodings(self, row: int, choice: int | None, *, trim: bool) -> dict[str, Any]:
        """Return the token columns of a row that are there; see `TraceStore.encodings`."""
        keep = self.span(row, choice) if trim else slice(None)
        result: dict[str, Any] = {}
        for name in _ENCODINGS:
            if name not in self.table.column_names:
                continue
            values = self.column(name)[row].as_py()
            if choice is not None and self.spans.start.ndim > 1:
                values = values[checked_index(choice, len(values), "choice_idx")]
            result[name] = values[keep] if name == "tokens" else np.asarray(values, dtype=np.int64)[keep]
        return result
