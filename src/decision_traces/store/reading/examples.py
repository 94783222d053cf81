"""The examples of a run: who they are, their text and tokens, and where these lie on the position axis."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from decision_traces.errors import DamagedRunError, UnknownExampleError, UsageError
from decision_traces.format.arrays import TOKENS_FILE, Side
from decision_traces.format.lists import Spans, filled, list_levels, mask_spans, rectangle
from decision_traces.store.files.conform import check_names, check_types, row_problem
from decision_traces.store.files.folder import FileRecord
from decision_traces.store.files.table import TableFile
from decision_traces.store.reading.selection import ExampleKey, checked_index
from decision_traces.store.reading.still import StillThere
from decision_traces.tasks import Task, task_of

if TYPE_CHECKING:
    import pandas

ENCODINGS: Final = ("input_ids", "attention_mask", "token_type_ids", "offset_mapping", "tokens")


@dataclass(frozen=True, slots=True)
class Padding:
    """What lists of tokens are filled up with.

    Attributes:
        size: T, in tokens.
        pad_id: In `input_ids`.
        pad_token: In `tokens`.
    """

    size: int
    pad_id: int
    pad_token: str

    def blank(self, name: str) -> int | str:
        """Return what stands in one column where no token does."""
        blanks: dict[str, int | str] = {"input_ids": self.pad_id, "tokens": self.pad_token}
        return blanks.get(name, 0)

    def fill(self, name: str, values: list[Any]) -> list[Any]:
        """Return the values of one text, filled up."""
        blank = [0, 0] if name == "offset_mapping" else self.blank(name)
        return values + [blank] * (self.size - len(values))


class Examples:
    """The rows of `tokens.parquet`, each column read on first use: of 100,000 examples, the tokens alone are 0.5 GB."""

    def __init__(
        self,
        run: Path,
        expected: Callable[[str], FileRecord | None],
        still: StillThere,
        objective: str,
    ) -> None:
        """Keep the path; nothing is read.

        Args:
            run: The run folder.
            expected: Gives what the manifest says about a file.
            still: Finds that the run was replaced.
            objective: What the meta says the run decides.
        """
        self._path = run / TOKENS_FILE
        self._expected = expected
        self._still = still
        self._objective = objective
        self._spans: dict[str, Spans] = {}
        self._columns: dict[str, pa.ChunkedArray] = {}

    @cached_property
    def task(self) -> Task:
        """Kind of decision; see `tasks.task_of`."""
        return task_of(self._objective, lambda: self.names)

    @cached_property
    def _apart(self) -> bool:
        """Whether the decoder's tokens have columns of their own."""
        return any(column.name == "dec_n_tokens" for column in self.task.columns)

    @cached_property
    def _file(self) -> TableFile:
        return TableFile(self._path, self._expected(TOKENS_FILE))

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        with self._still:
            return check_names(self._file.schema(), self._path)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.schema.names)

    def table(self, names: Iterable[str]) -> pa.Table:
        """Read those of some columns that are there, in one go.

        Raises:
            DamagedRunError: The file is changed, or one of them is of another type than it should be.
        """
        there = [name for name in names if name in self.names]
        check_types(self.schema, [column for column in self.task.columns if column.name in there], self._path)
        with self._still:
            return self._file.read(there)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.column(self.names[0]))

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """The whole table as a data frame."""
        check_names(self.schema, self._path)
        with self._still:
            return self._file.frame()

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column.

        Raises:
            DamagedRunError: There is no such column.
        """
        if name not in self.names:
            raise DamagedRunError(f"{self._path} has no column {name}; it has {', '.join(self.names)}.")
        self._read(name)
        return self._columns[name]

    def _read(self, *names: str) -> None:
        """Read those of some columns that were not read before."""
        new = [name for name in names if name not in self._columns]
        if new:
            table = self.table(new)
            self._columns |= {name: table.column(name) for name in new}

    def record(self, row: int) -> dict[str, Any]:
        """Return all columns of a row as Python values.

        Raises:
            DamagedRunError: Lists that go together are of different lengths, or a position is outside of the text.
        """
        self._read(*self.names)
        values = {name: self._columns[name][row].as_py() for name in self.names}
        if (problem := row_problem(values, self.task)) is not None:
            raise DamagedRunError(f"{self._path} is damaged: in row {row}, {problem}.")
        return values

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

    def prefix(self, side: Side) -> str:
        """Return what the token columns of a side begin with: `dec_` where an encoder has the plain names."""
        return "dec_" if self._apart and side == "dec" else ""

    def spans(self, side: Side) -> Spans:
        """Return where each example's tokens lie on one side.

        Runs of this package are padded on the right, so that `n_tokens` says it. Older tools' runs have the mask
        asked; where there is none, `n_tokens`.
        """
        prefix = self.prefix(side)
        if prefix not in self._spans:
            self._spans[prefix] = self._read_spans(f"{prefix}attention_mask", f"{prefix}n_tokens")
        return self._spans[prefix]

    def _read_spans(self, mask: str, n_tokens: str) -> Spans:
        older = self._expected(TOKENS_FILE) is None
        if older and mask in self.names and list_levels(self.column(mask)):
            return mask_spans(rectangle(self.column(mask)) != 0)
        counts = rectangle(self.column(n_tokens))
        if not np.issubdtype(counts.dtype, np.integer):
            raise DamagedRunError(f"{self._path}: {n_tokens} holds {counts.dtype}, expected integers.")
        return Spans(np.zeros(counts.shape, np.int64), counts.astype(np.int64))

    def prediction(self, side: Side) -> Int64[np.ndarray, " n"]:
        """Return the position of each example's prediction, -1 where there is none.

        Raises:
            UsageError: The run has no one such position, or it is one of the other side.
        """
        if self._apart and side == "enc":
            raise UsageError("The prediction of this run is made by the decoder, at no position of the encoder.")
        if self._predictions is None:
            raise UsageError("This run has no one position of its prediction: use position='last' or an int.")
        return self._predictions

    @cached_property
    def _predictions(self) -> Int64[np.ndarray, " n"] | None:
        column = self.task.decided_at
        if column is None or column not in self.names:
            return None
        positions = self.column(column)
        if not pa.types.is_integer(positions.type):
            raise DamagedRunError(f"{self._path}: {column} has type {positions.type}, expected integers.")
        return np.asarray(pc.fill_null(positions, -1).to_numpy(), dtype=np.int64)

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

    def span(self, row: int, choice: int | None, side: Side) -> slice:
        """Return the positions of one example's tokens on a side (of one choice, where the run has choices).

        Raises:
            UsageError: The run has choices of different lengths and none was named.
        """
        spans = self.spans(side)
        start, stop = spans.start[row], spans.stop[row]
        if start.ndim:
            if choice is None:
                raise UsageError("Each choice has its own length: name choice_idx to trim to its tokens.")
            start, stop = start[checked_index(choice, len(start), "choice_idx")], stop[choice]
        return slice(int(start), int(stop))

    def text(self, row: int) -> str:
        """Return the text of a row as it went to the tokenizer."""
        return str(self.column("text")[row].as_py())

    def encodings(self, row: int, choice: int | None, side: Side, padding: Padding | None) -> dict[str, Any]:
        """Return the token columns of a row that are there; see `TraceStore.encodings`.

        Args:
            row: The example.
            choice: One choice of it, where the run has choices.
            side: Whose tokens.
            padding: What its lists are filled up with; None to leave out padding.
        """
        keep = slice(None) if padding else self.span(row, choice, side)
        by_choice = self.spans(side).start.ndim > 1
        result: dict[str, Any] = {}
        for name in ENCODINGS:
            column = self.prefix(side) + name
            if column not in self.names:
                continue
            values = self.column(column)[row].as_py()
            if values is None or None in values:
                raise DamagedRunError(f"{self._path} is damaged: in row {row}, {column} is null.")
            if choice is not None and by_choice:
                values = values[checked_index(choice, len(values), "choice_idx")]
            if padding is not None:
                of_choices = choice is None and by_choice
                values = [padding.fill(name, v) for v in values] if of_choices else padding.fill(name, values)
            width = (-1, 2) if name == "offset_mapping" and not values else np.shape(values)
            result[name] = values[keep] if name == "tokens" else np.asarray(values, np.int64).reshape(width)[keep]
        return result

    def padded(self, name: str, side: Side, padding: Padding) -> np.ndarray:
        """Return a token column of all rows; see `TraceStore.padded`."""
        column = self.column(self.prefix(side) + name)
        try:
            return filled(column, padding.size, padding.blank(name), by_choice=self.spans(side).start.ndim > 1)
        except DamagedRunError as error:
            raise DamagedRunError(f"{self._path} is damaged: {name}: {error}.") from error
