"""Putting the tables of an analysis into the run's analysis folder, a few examples at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from decision_traces.errors import RunError

_EXAMPLES: Final = 2048


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


def write_result(path: Path, *results: Result) -> Path:
    """Write results of one kind as one Parquet file, its folder made, and return the path.

    As data frames they are many times larger than as arrays, so they are written in portions.

    Raises:
        RunError: The file cannot be written.
    """
    tables = (pa.Table.from_pandas(portion.to_frame(), preserve_index=False) for portion in _portions(results))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        first = next(tables)
        with pq.ParquetWriter(path, first.schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}).") from error
    return path


def _portions(results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
        for start in range(0, len(result.example_id), _EXAMPLES):
            yield result.rows(slice(start, start + _EXAMPLES))
