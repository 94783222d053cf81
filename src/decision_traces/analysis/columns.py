"""Some columns of a run's token table: all of it would be gigabytes once its lists are Python objects."""

from collections.abc import Sequence

import pyarrow as pa

from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.store import TraceStore, read_manifest, read_table


def read_columns(store: TraceStore, names: Sequence[str]) -> pa.Table:
    """Read those of the columns that the run's `tokens.parquet` has.

    Raises:
        DamagedRunError: The file is not as written.
    """
    expected = read_manifest(store.run_dir).get(TOKENS_FILE)
    present = [name for name in names if name in store.columns]
    return read_table(store.run_dir / TOKENS_FILE, columns=present, expected=expected)
