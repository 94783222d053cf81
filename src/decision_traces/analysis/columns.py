"""Some columns of a run's token table: all of it would be gigabytes once its lists are Python objects."""

from collections.abc import Sequence

import pyarrow as pa

from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.store.files.folder import read_manifest
from decision_traces.store.files.table import read_table
from decision_traces.store.reading.trace_store import TraceStore


def read_columns(store: TraceStore, names: Sequence[str]) -> pa.Table:
    """Read those of the columns that the run's `tokens.parquet` has.

    Raises:
        DamagedRunError: The file is not as written.
    """
    expected = read_manifest(store.run_dir).get(TOKENS_FILE)
    there = [name for name in names if name in store.columns]
    return read_table(store.run_dir / TOKENS_FILE, columns=there, expected=expected)
