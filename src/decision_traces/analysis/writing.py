"""Tables of results, written a few examples at a time: as data frames they are many times larger than as arrays."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from decision_traces.store import write_table

_EXAMPLES: Final = 2048


@runtime_checkable
class ByExample(Protocol):
    """A result with one entry per example."""

    @property
    def example_id(self) -> tuple[str, ...]:
        """The examples."""

    def rows(self, part: slice) -> "ByExample":
        """Return some of the examples."""

    def to_frame(self) -> pd.DataFrame:
        """Return the result as a table."""


def write_examples(path: Path, *results: ByExample) -> None:
    """Write results of one kind as one Parquet file."""
    tables = (pa.Table.from_pandas(portion.to_frame(), preserve_index=False) for portion in _portions(results))
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame as one Parquet file."""
    write_table(path, pa.Table.from_pandas(frame, preserve_index=False))


def _portions(results: Iterable[ByExample]) -> Iterator[ByExample]:
    for result in results:
        for start in range(0, len(result.example_id), _EXAMPLES):
            yield result.rows(slice(start, start + _EXAMPLES))
