"""Putting what an analysis computed into the run, or where `--out` says: a few examples at a time, all or nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from decision_traces.store import OpenRun, new_result

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_EXAMPLES: Final = 2048
_NO_OPTIONS: Final = frozenset({"run", "out", "quiet"})


@runtime_checkable
class Result(Protocol):
    """A result with one entry per example."""

    @property
    def example_id(self) -> tuple[str, ...]:
        """The examples."""

    def rows(self, part: slice) -> "Result":
        """Return some of the examples."""

    def to_frame(self) -> pd.DataFrame:
        """Return the result as a table."""


@contextmanager
def kept_in_run(store: OpenRun, name: str, args: "DataclassInstance", console: Console) -> Iterator[Path]:
    """Yield the folder that a command writes into, and at the end of the block say what lies there now.

    Args:
        store: The run.
        name: The command.
        args: Its flags, for the record.
        console: Where it is said.

    Raises:
        RunError: The run is being written by another process, was replaced, or cannot be written.
    """
    options: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(args) if f.name not in _NO_OPTIONS}
    with new_result(store, name, options) as new:
        yield new.folder
    for path in sorted(store.results.result(name).iterdir()):
        console.print(f"Written: {path}", soft_wrap=True)
    for note in new.notes:
        console.print(note, soft_wrap=True)


def write_result(path: Path, *results: Result) -> None:
    """Write results of one kind as one Parquet file.

    As data frames they are many times larger than as arrays, so they are written in portions.
    """
    tables = (pa.Table.from_pandas(portion.to_frame(), preserve_index=False) for portion in _portions(results))
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _portions(results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
        for start in range(0, len(result.example_id), _EXAMPLES):
            yield result.rows(slice(start, start + _EXAMPLES))
