"""How many examples a block has."""

import numpy as np
import pytest

from decision_traces.extract.cost import block_rows
from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.store.writing.layout import RunLayout
from decision_traces.tokens import Encoding

TEXT = Encoding(np.arange(3, dtype=np.int32), np.zeros((3, 2), np.int32), False)


@pytest.mark.parametrize("n_positions", [256, 1 << 26])
def test_a_block_has_as_many_rows_however_long_texts_may_be(n_positions: int) -> None:
    """One position is kept, so the arrays are small; the token table has what is there."""
    dims = Dims(1000, 2, 4, 4, 8, 32, n_positions, positions="next")
    layout = RunLayout(tuple(arrays_for("dec", ("hidden",))), {"dec": dims}, "float16", 1)
    assert block_rows(layout, [TEXT] * 1000, 1 << 30) == 1000
