"""What stands in a run folder, read without the package, and what must not have been left behind."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

CAPTURE = ("attn", "qkv", "hidden", "resid")
N_TEXTS = 80

Content = dict[str, np.ndarray | pa.Table]
"""Array (`group/key`) or table file to what it holds."""


def texts(n: int) -> Iterator[str]:
    """Yield n texts of three lengths."""
    yield from (f"{'a longer line of text ' * (2 + i % 3)}{i}" for i in range(n))


def content_of(run: Path) -> Content:
    """Return every array and every table of a run."""
    arrays = {
        f"{group.name}/{name}": array[...]
        for group in sorted(run.glob("*.zarr"))
        for name, array in zarr.open_group(group, mode="r").arrays()
    }
    return arrays | {table.name: pq.read_table(table) for table in sorted(run.glob("*.parquet"))}


def assert_same(found: Content, wanted: Content) -> None:
    """Compare two runs number by number, and their tables value by value."""
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        other = found[name]
        if isinstance(one, pa.Table):
            assert other.equals(one), name
        else:
            assert (other.dtype, other.shape) == (one.dtype, one.shape), name
            np.testing.assert_array_equal(other, one, err_msg=name)
