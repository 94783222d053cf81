"""How many examples a block has."""

import numpy as np
import pytest

from decision_traces.extract.cost import block_rows
from decision_traces.schema import Dims, arrays_for
from decision_traces.store.layout import RunLayout
from decision_traces.tokens import Encoding

TEXT = Encoding(np.arange(3, dtype=np.int32), np.zeros((3, 2), np.int32), False)


@pytest.mark.parametrize(
    ("n_positions", "rows"),
    [
        (1 << 18, 128),  # 2^25 rows of the token table
        (1 << 22, 8),
        (1 << 25, 1),
        (1 << 26, 1),  # a single text is still a block
    ],
)
def test_a_block_is_bounded_by_its_token_table(n_positions: int, rows: int) -> None:
    """One position is kept, so the arrays are small however long the texts may be; the table has a row for each."""
    dims = Dims(1000, 2, 4, 4, 8, 32, n_positions, positions="next")
    layout = RunLayout(tuple(arrays_for("dec", ("hidden",))), {"dec": dims}, "float16", 1)
    assert block_rows(layout, [TEXT] * 1000, 1 << 30) == rows


def test_a_short_table_does_not_bound_it() -> None:
    dims = Dims(1000, 2, 4, 4, 8, 32, 256, positions="next")
    layout = RunLayout(tuple(arrays_for("dec", ("hidden",))), {"dec": dims}, "float16", 1)
    assert block_rows(layout, [TEXT] * 1000, 1 << 30) == 1000
